//! The object store: its demonstration, and its commands against servers of their own. Where `KFAB_LAB_RDMA=1` demands RDMA cards,
//! as in `cargo xtask lab`, all of it over them.

mod common;

use common::{Ended, run};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

fn program() -> Command {
    let mut command = common::program("objectstore");
    if std::env::var_os("KFAB_LAB_RDMA").is_some() {
        command.args(["--over", "verbs"]);
    }
    command
}

#[test]
fn the_demonstration_loses_nothing() {
    let ended = run(&mut program());
    let out = ended.text();
    assert!(ended.good, "{out}\n{}", ended.err);
    assert!(out.contains("stat: 19 bytes; range: \"object\""), "{out}");
    assert!(out.contains("deleted: true") && out.contains("Failed(2)"), "{out}");
    assert!(out.contains("57@kfi killed under load") && out.contains("servers lost: 1"), "{out}");
    let checked: u32 =
        out.split("has all ").nth(1).and_then(|w| w.split(' ').next()).unwrap().parse().unwrap();
    assert!(checked > 0, "{out}");
    let over = if std::env::var_os("KFAB_LAB_RDMA").is_some() { "57@kfi verbs:" } else { "57@kfi shm:" };
    assert!(out.starts_with(over), "{out}");
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Setup {
    dir: PathBuf,
    book: PathBuf,
    servers: Vec<Server>,
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Setup {
    fn new(name: &str) -> Setup {
        let dir = std::env::temp_dir().join(format!("objectstore-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut book = String::new();
        let mut servers = Vec::new();
        for nid in [57, 58] {
            let mut command = program();
            command.arg("serve").arg(dir.join("objects")).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut address = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
            servers.push(Server(child));
            book += &format!("{nid}@kfi {address}");
        }
        let path = dir.join("book");
        std::fs::write(&path, book).unwrap();
        Setup { dir, book: path, servers }
    }

    fn command(&self, words: &[&str]) -> Ended {
        run(program().arg("--book").arg(&self.book).args(words))
    }
}

#[test]
fn commands_put_get_list_stat_and_delete_at_either_server() {
    let mut setup = Setup::new("commands");
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
    let file = setup.dir.join("file");
    std::fs::write(&file, &data).unwrap();
    let file = file.to_str().unwrap().to_owned();
    for name in ["b-1", "a-1", "a-2"] {
        let ended = setup.command(&["put", name, &file]);
        assert!(ended.good, "{}", ended.err);
    }
    assert!(setup.command(&["ping"]).good);
    assert_eq!(setup.command(&["list", "a-"]).out, b"a-1\na-2\n");
    // The first server dies; the other serves.
    setup.servers.remove(0);
    assert!(setup.command(&["get", "a-1"]).out == data);
    assert!(setup.command(&["get", "a-1", "2999990", "100"]).out == data[2_999_990..]);
    assert_eq!(setup.command(&["stat", "b-1"]).out, b"3000000 bytes\n");
    assert_eq!(setup.command(&["delete", "b-1"]).out, b"deleted\n");
    assert_eq!(setup.command(&["delete", "b-1"]).out, b"was not there\n");
    for name in ["../book", ".x", "a/b"] {
        let ended = setup.command(&["put", name, &file]);
        assert!(!ended.good && ended.err.contains("no object name"), "{name}: {}", ended.err);
    }
    let load = setup.command(&["load", "2", "1000", "1"]);
    assert!(load.good && String::from_utf8_lossy(&load.out).contains("put and read back"), "{}", load.err);
}
