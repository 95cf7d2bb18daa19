//! Comma-separated values, one header line, fixed columns; empty where a figure does not exist.

use crate::bench::figures::Row;

const HEAD: &str = "test,provider,size,window,count,p50_ns,p90_ns,p99_ns,p999_ns,p9999_ns,mean_ns,min_ns,max_ns,msg_per_s,bytes_per_s";

/// All rows.
pub(crate) fn perf(rows: &[Row]) -> String {
    let mut out = format!("{HEAD}\n");
    for r in rows {
        let l = match &r.latency {
            Some(l) => [l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns, l.p9999_ns, l.mean_ns, l.min_ns, l.max_ns]
                .map(|v| format!("{v:.1}"))
                .join(","),
            None => ",".repeat(7),
        };
        let (count, rates) = match &r.rate {
            Some(r) => (r.count.to_string(), format!("{:.1},{:.1}", r.msg_per_s, r.bytes_per_s)),
            None => (String::new(), ",".to_owned()),
        };
        let (name, via) = (r.test, &r.provider);
        out += &format!("{name},{via},{},{},{count},{l},{rates}\n", r.size, r.window);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_as_many_fields_as_the_head() {
        let with = Row {
            latency: Some(Default::default()),
            provider: "shm".into(),
            test: "lat",
            ..Default::default()
        };
        let without = Row { latency: None, rate: Some(Default::default()), ..with.clone() };
        let text = perf(&[with, without]);
        assert!(text.lines().all(|l| l.split(',').count() == 15), "{text}");
    }
}
