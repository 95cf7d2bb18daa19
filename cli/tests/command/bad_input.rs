//! Bad input is met by name, with the exit code that says whose fault it is.

use crate::run::{Dir, Running, kfab, run, server};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn an_unknown_provider_is_named_and_those_there_are_listed() {
    for args in [&["pingpong", "--provider", "smoke"][..], &["perf", "lat", "--provider", "tcp,smoke"]] {
        run(args).code(2).says(&["\"smoke\"", "shm", "tcp"]);
    }
    run(&["serve", "--listen", "smoke:1"]).code(2).says(&["\"smoke\"", "tcp"]);
}

/// What those codes are, and the variables, is told.
#[test]
fn help_tells_exit_codes_and_variables() {
    let help = run(&["--help"]).ok().out;
    let first_words = |section: &str| -> Vec<String> {
        let lines = help.split(section).nth(1).unwrap_or_default().trim_start().lines();
        let lines = lines.take_while(|line| !line.is_empty());
        lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    assert_eq!(first_words("Exit codes:"), ["0", "1", "2", "3", "130"], "{help}");
    assert_eq!(first_words("Variables:"), ["KFAB_LOG", "KFAB_KEY", "NO_COLOR"], "{help}");
}

#[test]
fn an_address_that_does_not_parse_is_shown_with_the_place() {
    run(&["pingpong", "7000"]).code(2).says(&["\"7000\"", "SCHEME:WHERE", "character 1"]);
    run(&["perf", "lat", "tcp:127.0.0.1:1,7000"]).code(2).says(&["character 17"]);
}

#[test]
fn an_address_that_does_not_answer_is_unreachable_and_what_was_tried_is_said() {
    // The discard port of loopback: nobody is there.
    run(&["pingpong", "--provider", "tcp", "tcp:127.0.0.1:9"]).code(3).says(&["127.0.0.1:9", "kfab serve"]);
}

#[test]
fn an_address_for_which_there_is_no_provider_is_unreachable() {
    let e = run(&["pingpong", "warp:7"]);
    assert!(matches!(e.code, Some(2 | 3)), "{e:?}");
    assert!(e.err.contains("warp"), "{}", e.err);
}

#[test]
fn a_wrong_key_is_a_wrong_key() {
    let dir = Dir::new();
    let (mine, theirs) = (dir.key("mine"), dir.key("theirs"));
    let (_server, address) = server(&["--key-file", &theirs]);
    for args in [&["--key-file", &mine][..], &[]] {
        let all =
            [&["perf", "lat", "--provider", "tcp", &address, "--size", "8", "--duration", "0.05"], args]
                .concat();
        let e = run(&all);
        assert!(matches!(e.code, Some(1 | 3)), "{e:?}");
        assert!(e.err.contains("key"), "{}", e.err);
    }
    let all = [
        "perf",
        "lat",
        "--provider",
        "tcp",
        &address,
        "--size",
        "8",
        "--duration",
        "0.05",
        "--key-file",
        &theirs,
    ];
    run(&all).ok();
}

#[test]
fn key_files_that_are_none_are_named() {
    let dir = Dir::new();
    let file = dir.file("short");
    std::fs::write(&file, "abc").unwrap();
    run(&["pingpong", "--key-file", &file]).code(2).says(&[&file, "64 hex"]);
    run(&["pingpong", "--key-file", "/nowhere/key"]).code(3).says(&["/nowhere/key"]);
}

#[test]
fn a_new_key_is_private_and_never_overwrites() {
    let dir = Dir::new();
    let file = dir.key("key");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.trim().len() == 64 && text.trim().bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    run(&["keygen", &file]).code(1).says(&[&file, "overwritten"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert_ne!(run(&["keygen"]).ok().out, run(&["keygen"]).ok().out);
}

#[test]
fn sizes_windows_and_cpus_out_of_range_are_told_their_limits() {
    run(&["perf", "bw", "--window", "0"]).code(2).says(&["16384"]);
    run(&["perf", "bw", "--window", "1000000"]).code(2).says(&["1000000", "16384"]);
    run(&["perf", "lat", "--size", "0"]).code(2).says(&["256 MiB"]);
    run(&["perf", "lat", "--size", "1GiB"]).code(2).says(&["1GiB", "256 MiB"]);
    run(&["perf", "lat", "--size", "8..4"]).code(2).says(&["larger"]);
    run(&["perf", "lat", "--window", "2"]).code(2).says(&["one message"]);
    run(&["perf", "bw", "--window", "1000", "--size", "256MiB"]).code(2).says(&["256 MiB", "2 GiB"]);
    run(&["perf", "lat", "--pin", "0,5000"]).code(2).says(&["5000"]);
    run(&["perf", "lat", "tcp:127.0.0.1:9", "--pin", "0,5000"]).code(2).says(&["5000"]);
    run(&["pingpong", "tcp:127.0.0.1:9", "--pin", "0,5000"]).code(2).says(&["5000"]);
    run(&["pingpong", "--window", "1000", "--size", "256MiB"]).code(2).says(&["256 MiB", "2 GiB"]);
    run(&["perf", "lat", "--pin", "zero"]).code(2).says(&["CPU numbers"]);
    run(&["perf", "lat", "--iterations", "5", "--duration", "1"]).code(2);
    run(&["perf"]).code(2);
    run(&["frobnicate"]).code(2).says(&["frobnicate"]);
}

#[test]
fn a_device_of_a_provider_that_is_left_out_is_named() {
    let of_tcp = ["--provider", "shm", "--device", "tcp:lo"];
    for command in [&["perf", "lat"][..], &["pingpong"], &["serve"], &["lnet", "node"]] {
        run(&[command, &of_tcp].concat()).code(2).says(&["--device tcp:lo", "--provider"]);
    }
    // The twin; a device of the one provider is no matter to the peer process of the other.
    let both = ["--provider", "shm,tcp", "--device", "tcp:lo", "--size", "8", "--iterations", "20"];
    run(&[&["perf", "lat"], &both[..]].concat()).ok();
}

#[test]
fn too_few_descriptors_are_said_at_the_start() {
    let mut c = Command::new("sh");
    c.args(["-c", "ulimit -n 12; exec \"$0\" pingpong", env!("CARGO_BIN_EXE_kfab")]);
    Running::start(c).end().code(3).says(&["RLIMIT_NOFILE", "12", "ulimit -n"]);
}

#[test]
fn too_little_locked_memory_is_said_with_how_to_raise_it() {
    let info = |limit: &str| {
        let mut c = Command::new("sh");
        let script = format!("ulimit -l {limit} && exec \"$0\" info --json");
        c.args(["-c", &script, env!("CARGO_BIN_EXE_kfab")]);
        let e = Running::start(c).end().ok();
        let facts = e.json()["system"].as_array().unwrap_or_else(|| panic!("{e:?}")).clone();
        facts.into_iter().find(|f| f["name"] == "locked memory").expect("a fact")
    };
    let few = info("64");
    assert!(few["value"].as_str().unwrap().starts_with("65536 B"), "{few}");
    assert!(few["remedy"].as_str().unwrap().contains("ulimit -l"), "{few}");
    // The twin, where it may be raised.
    if rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum.is_none_or(|m| m >= 128 << 20) {
        let enough = info("131072");
        assert!(enough["remedy"].is_null(), "{enough}");
    }
}

#[test]
fn a_second_server_on_the_same_address_is_refused() {
    let (_first, address) = server(&[]);
    run(&["serve", "--provider", "tcp", "--listen", &address])
        .code(3)
        .says(&["another server has this address"]);
    let name = format!("shm:kfab-test-{}", std::process::id());
    let first = Running::start(kfab(&["serve", "--provider", "shm", "--listen", &name]));
    assert!(first.line().starts_with("shm:"));
    run(&["serve", "--provider", "shm", "--listen", &name])
        .code(3)
        .says(&["another server has this address"]);
}

#[test]
fn a_busy_metrics_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    run(&["serve", "--provider", "tcp", "--prometheus", &at]).code(3).says(&["--prometheus", &at]);
}

#[test]
fn a_key_may_come_from_a_variable_and_nonsense_there_is_named() {
    let kfab = |key: &str, args: &[&str]| kfab(args).env("KFAB_KEY", key).output().unwrap();
    let out = kfab("0123", &["pingpong", "tcp:127.0.0.1:9"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("KFAB_KEY"), "{out:?}");
    let key = "5a".repeat(32);
    let args = ["perf", "lat", "--provider", "tcp", "--size", "8", "--iterations", "20", "--pin", "none"];
    let out = kfab(&key, &args);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    run(&["perf", "lat", "--plain"]).code(2).says(&["--plain", "--key-file"]);
}

#[test]
fn what_cannot_work_is_said_before_anything_is_measured() {
    let begun = std::time::Instant::now();
    run(&["perf", "lat", "--svg", "/no/such/folder/x.svg"]).code(2).says(&["/no/such/folder/x.svg"]);
    // Missing or not, it is not a reason to measure the machine first.
    let verbs = run(&["info"]);
    if verbs.out.contains("verbs   unavailable") {
        run(&["pingpong", "--provider", "verbs"]).code(3).says(&["verbs"]);
    }
    run(&["pingpong", "tcp:127.0.0.1"]).code(2).says(&["tcp:127.0.0.1", "ADDRESS:PORT"]);
    println!("{:?}", begun.elapsed());
}

#[test]
fn sealing_that_only_one_side_wants_is_told_by_its_flag() {
    let dir = Dir::new();
    let key = dir.key("key");
    let sealed = ["--key-file", &key];
    let plain = ["--key-file", &key, "--plain"];
    for (there, here) in [(&sealed[..], &plain[..]), (&plain, &sealed)] {
        let (_server, address) = server(there);
        let lat = ["perf", "lat", "--provider", "tcp", &address, "--size", "8", "--iterations", "20"];
        let e = run(&[&lat[..], here].concat()).says(&["hint", "--plain"]);
        assert!(matches!(e.code, Some(1 | 3)) && !e.err.contains("same key"), "{e:?}");
        run(&[&lat[..], there].concat()).ok();
    }
}

#[test]
fn a_log_level_that_is_none_is_named() {
    let logs = |level: &str| Running::start(env(kfab(&["info"]), "KFAB_LOG", level)).end().ok();
    for level in ["bogus", "verbose"] {
        logs(level).says(&["KFAB_LOG", level, "trace", "warn is taken"]);
    }
    for level in ["", "off", "error", "warn", "info"] {
        let e = logs(level);
        assert!(!e.err.contains("KFAB_LOG"), "{level:?}: {e:?}");
    }
    // The peer process does not say it again.
    let lat = kfab(&["perf", "lat", "--provider", "shm", "--size", "8", "--iterations", "20"]);
    let e = Running::start(env(lat, "KFAB_LOG", "bogus")).end().ok();
    assert_eq!(e.err.matches("bogus").count(), 1, "{e:?}");
}

#[test]
fn an_empty_key_variable_is_no_key() {
    let lat = ["perf", "lat", "--provider", "shm", "--size", "8", "--iterations", "20"];
    Running::start(env(kfab(&lat), "KFAB_KEY", "")).end().ok();
    let plain = kfab(&[&lat[..], &["--plain"]].concat());
    Running::start(env(plain, "KFAB_KEY", "")).end().code(2).says(&["--plain", "no key"]);
}

fn env(mut c: Command, name: &str, value: &str) -> Command {
    c.env(name, value);
    c
}

/// Before a figure of the first provider is there.
#[test]
fn devices_that_are_not_there_are_named_before_anything_is_measured() {
    let short = ["--size", "8", "--iterations", "20", "--csv"];
    for device in ["tcp:nope", "shm:nope"] {
        for provider in [&[][..], &["--provider", "shm,tcp"]] {
            let e = run(&[&["perf", "lat", "--device", device], &short[..], provider].concat());
            let e = e.code(3).says(&["--device", "nope"]);
            assert_eq!(e.out, "");
        }
    }
    let both = ["--device", "tcp:lo,tcp:nope"];
    let e = run(&[&["perf", "lat"], &both[..], &short].concat()).code(3).says(&["nope"]);
    assert_eq!(e.out, "");
    let e = run(&["pingpong", "--device", "tcp:nope", "--json"]).code(3).says(&["nope"]);
    assert_eq!(e.out, "");
    let e = run(&["perf", "wake", "--device", "tcp:nope", "--iterations", "4", "--asleep", "1"]);
    let e = e.code(3).says(&["nope"]);
    assert_eq!(e.out, "");
    for (device, word) in [("smoke:x", "\"smoke\""), ("lo", "PROVIDER:DEVICE")] {
        let e = run(&[&["perf", "lat", "--device", device], &short[..]].concat()).code(2).says(&[word]);
        assert_eq!(e.out, "");
    }
}

#[test]
fn only_the_providers_of_named_devices_are_measured() {
    let lat = ["perf", "lat", "--size", "8", "--iterations", "20", "--json"];
    let provider = |more: &[&str]| run(&[&lat[..], more].concat()).ok().json()["provider"].clone();
    assert_eq!(provider(&["--device", "tcp:lo"]), "tcp");
    assert_eq!(provider(&["--device", "tcp:lo", "--provider", "shm,tcp"]), "shm,tcp");
    // Who was not asked for is not missing either.
    let args = ["pingpong", "--device", "tcp:lo", "--size", "8", "--iterations", "20", "--json"];
    let document = run(&args).ok().json();
    assert_eq!(document["rows"].as_array().map(Vec::len), Some(1), "{document}");
    assert_eq!(document["unavailable"].as_array().map(Vec::len), Some(0), "{document}");
}

/// They belong to the command line, and to no provider.
#[test]
fn keys_and_cpus_are_no_providers_fault() {
    let commands = [&["perf", "lat"][..], &["pingpong"], &["perf", "wake"]];
    for command in commands {
        let begins = |e: &crate::run::Ended, with: &str| {
            assert!(e.err.lines().any(|l| l.starts_with(with)), "{command:?}: {e:?}");
            assert!(!e.err.contains("shm"), "{command:?}: {e:?}");
        };
        let e = run(&[command, &["--key-file", "/nowhere/key"]].concat()).code(3);
        begins(&e, "kfab: key file /nowhere/key: ");
        let e = run(&[command, &["--pin", "0,5000"]].concat()).code(2);
        begins(&e, "kfab: --pin: CPU 5000 ");
        let e = Running::start(env(kfab(command), "KFAB_KEY", "0123")).end().code(2);
        begins(&e, "kfab: KFAB_KEY: ");
        let e = run(&[command, &["--plain"]].concat()).code(2);
        begins(&e, "kfab: --plain: ");
    }
}

#[test]
fn a_key_file_without_end_is_not_read_to_it() {
    let mut c = Command::new("sh");
    // What is read for ever needs more than this soon.
    let script = "ulimit -v 4000000; exec \"$0\" perf lat tcp:127.0.0.1:9 --key-file /dev/zero";
    c.args(["-c", script, env!("CARGO_BIN_EXE_kfab")]);
    Running::start(c).end().code(2).says(&["/dev/zero", "more than 4096 bytes", "64 hex"]);
    // The twin: blanks around a key are no matter.
    let dir = Dir::new();
    let file = dir.file("key");
    std::fs::write(&file, format!("\n{}\n{}", "5a".repeat(32), " ".repeat(4000))).unwrap();
    run(&["perf", "lat", "--provider", "shm", "--key-file", &file, "--size", "8", "--iterations", "20"]).ok();
}

#[test]
fn ranges_and_bounds_are_told_by_help_and_error() {
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for command in [&["perf", "lat", "--help"][..], &["pingpong", "--help"]] {
        let help = flat(&run(command).ok().out);
        assert!(help.contains("A and its doubles up to B (8..1000: 8, 16, .. 512)"), "{help}");
    }
    let help = flat(&run(&["perf", "wake", "--help"]).ok().out);
    assert!(help.contains("whole seconds, 1 to 25"), "{help}");
    for asleep in ["0.5", "0", "26", "x"] {
        run(&["perf", "wake", "--asleep", asleep]).code(2).says(&[asleep, "whole seconds, 1 to 25"]);
    }
}
