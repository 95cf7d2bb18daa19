//! Which port of ours is tried with which way of a peer. Called by `connect` for the ways and ports of one scheme.

/// Pairs of a way and a port, by number. Each way gets a port of its own that reaches it, where there is one, the k-th way the k-th if that
/// can be: two cards here and two there make two rails, in whatever order they are named. What is left over shares. A way and a
/// port that do not reach each other are a pair only if none do: then who says so may be wrong.
pub(crate) fn pairs(
    ways: usize,
    ports: usize,
    reaches: impl Fn(usize, usize) -> bool,
) -> Vec<(usize, usize)> {
    let mut leads: Vec<Vec<bool>> = (0..ways).map(|w| (0..ports).map(|p| reaches(w, p)).collect()).collect();
    if !leads.concat().contains(&true) {
        leads = vec![vec![true; ports]; ways];
    }
    let mut choosy: Vec<usize> = (0..ways).collect();
    // Who has the least choice chooses first.
    choosy.sort_by_key(|w| leads[*w].iter().filter(|l| **l).count());
    let (mut list, mut taken) = (Vec::new(), vec![false; ports]);
    for way in choosy {
        let turn = || (0..ports).map(|p| (way + p) % ports).filter(|p| leads[way][*p]);
        if let Some(port) = turn().find(|p| !taken[*p]).or_else(|| turn().next()) {
            taken[port] = true;
            list.push((way, port));
        }
    }
    list.sort_unstable();
    for port in (0..ports).filter(|p| !taken[*p]) {
        let way = (0..ways).map(|w| (port + w) % ways).find(|w| leads[*w][port]);
        list.extend(way.map(|way| (way, port)));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_where_all_reach_all() {
        let all = |ways, ports| pairs(ways, ports, |_, _| true);
        assert_eq!(all(2, 2), [(0, 0), (1, 1)]);
        assert_eq!(all(3, 2), [(0, 0), (1, 1), (2, 0)]);
        assert_eq!(all(2, 3), [(0, 0), (1, 1), (0, 2)]);
        assert!(all(0, 2).is_empty() && all(2, 0).is_empty());
    }

    #[test]
    fn like_with_like() {
        let on = |ways: &[char], ports: &[char]| {
            pairs(ways.len(), ports.len(), |w, p| ways[w] == ports[p] || ways[w] == '?')
        };
        assert_eq!(on(&['b', 'a'], &['a', 'b']), [(0, 1), (1, 0)]);
        assert_eq!(on(&['a', 'a', 'b'], &['b', 'a']), [(0, 1), (1, 1), (2, 0)]);
        // A way that no port reaches is left out, and a port that reaches none.
        assert_eq!(on(&['b', 'c'], &['a', 'b']), [(0, 1)]);
        // One that is reached by all does not take the place of one that has no choice.
        assert_eq!(on(&['?', 'a'], &['a', 'b']), [(0, 1), (1, 0)]);
        // Nobody reaches anything: better to try than to give up.
        assert_eq!(on(&['c', 'd'], &['a', 'b']), [(0, 0), (1, 1)]);
    }
}
