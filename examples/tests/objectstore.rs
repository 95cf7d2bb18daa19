//! The object store: its demonstration, and its commands against servers of their own. Where `KFAB_LAB_RDMA=1` demands RDMA cards,
//! as in `cargo xtask lab`, all of it over them.

mod common;
#[allow(dead_code, unreachable_pub, reason = "the program's own")]
#[path = "../objectstore/protocol.rs"]
mod protocol;
#[allow(dead_code, unreachable_pub, reason = "the program's own")]
#[path = "../objectstore/store.rs"]
mod store;

use common::{Ended, run};
use protocol::{List, Version};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::Store;

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

/// Whoever gets an object while it is put anew gets one or the other, whole.
#[test]
fn a_get_is_whole_while_others_put() {
    let setup = Setup::new("whole");
    let [small, large] = [1000, 300_000].map(|len: u32| {
        let at = setup.dir.join(len.to_string());
        std::fs::write(&at, (0..len).map(|i| (i % 251) as u8).collect::<Vec<u8>>()).unwrap();
        (at.to_str().unwrap().to_owned(), len as usize)
    });
    let put = |(file, _): &(String, usize)| assert!(setup.command(&["put", "x", file]).good);
    put(&small);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for file in [&large, &small].into_iter().cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                put(file);
            }
        });
        for _ in 0..20 {
            let got = setup.command(&["get", "x"]);
            assert!(got.good && [small.1, large.1].contains(&got.out.len()), "{} {}", got.out.len(), got.err);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let setup = Setup::new("pipe");
    assert!(setup.command(&["put", "x", setup.book.to_str().unwrap()]).good);
    for words in [&["list"][..], &["get", "x"], &["stat", "x"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = program();
        command.arg("--book").arg(&setup.book).args(words).stdout(writer).stderr(Stdio::piped());
        let ended = command.spawn().unwrap().wait_with_output().unwrap();
        assert!(ended.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }
}

fn read(store: &Store, name: &str) -> Option<Vec<u8>> {
    let mut data = vec![0; store.stat(name).ok()? as usize];
    let (have, whole) = store.get(name, 0, &mut data).unwrap();
    assert_eq!((have, whole), (data.len(), data.len() as u64));
    Some(data)
}

/// What a slow server does late, after the other has done it and more.
#[test]
fn a_late_change_changes_nothing() {
    let dir = std::env::temp_dir().join(format!("objectstore-test-late-{}", std::process::id()));
    let [slow, other] = [(); 2].map(|()| Store::open(dir.clone()).unwrap());
    let next = |store: &Store, writer| Version { count: store.version("x").unwrap().count + 1, writer };
    let first = next(&slow, 7);
    other.put("x", first, &[b"first"], true).unwrap();
    let second = next(&other, 3);
    other.put("x", second, &[b"sec", b"ond"], true).unwrap();
    slow.put("x", first, &[b"first"], true).unwrap();
    assert_eq!(read(&slow, "x").unwrap(), b"second");
    // Done twice is done once; of two begun beside each other the later stays.
    slow.put("x", second, &[b"second"], false).unwrap();
    let beside = next(&slow, 9);
    slow.put("x", beside, &[b"beside"], false).unwrap();
    other.put("x", Version { writer: 8, ..beside }, &[b"less"], false).unwrap();
    assert_eq!(read(&other, "x").unwrap(), b"beside");
    // Nor does a late put bring back what was deleted, or a late deletion end what was put.
    let gone = next(&other, 1);
    assert!(other.delete("x", gone).unwrap());
    slow.put("x", beside, &[b"beside"], true).unwrap();
    assert_eq!((read(&slow, "x"), slow.delete("x", gone).unwrap()), (None, true));
    assert!(!other.delete("x", next(&other, 2)).unwrap(), "there is nothing");
    let again = next(&slow, 1);
    other.put("x", again, &[b"again"], true).unwrap();
    assert!(slow.delete("x", gone).unwrap());
    assert_eq!(read(&other, "x").unwrap(), b"again");
    // A range, and nothing left of what was in the making.
    let mut part = [0; 3];
    assert_eq!((other.get("x", 2, &mut part).unwrap(), &part), ((3, 5), b"ain"));
    assert_eq!(all(&slow), ["x"]);
    assert!(files(&dir).iter().all(|f| f == "x" || f.starts_with(".lock")), "{:?}", files(&dir));
    std::fs::remove_dir_all(&dir).unwrap();
}

fn all(store: &Store) -> Vec<String> {
    store.list(&List { prefix: String::new(), after: String::new() }).unwrap()
}

fn files(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// A server died after the grave was there and before the object was gone, another after its files were there and before their bytes.
#[test]
fn what_a_dead_server_left_half_done_is_done() {
    let dir = std::env::temp_dir().join(format!("objectstore-test-half-{}", std::process::id()));
    let store = Store::open(dir.clone()).unwrap();
    let version = |count| Version { count, writer: 1 };
    let (at, grave) = (dir.join("x"), dir.join(".gone.x"));
    store.put("x", version(1), &[b"data"], true).unwrap();
    let object = std::fs::read(&at).unwrap();
    assert!(store.delete("x", version(2)).unwrap());
    std::fs::write(&at, &object).unwrap();
    let gone = |store: &Store| {
        assert!(store.get("x", 0, &mut [0; 9]).is_err() && store.stat("x").is_err());
        assert!(all(store).is_empty());
    };
    gone(&store);
    assert!(store.delete("x", version(2)).unwrap(), "the same again");
    assert!(!at.exists());
    std::fs::write(&at, &object).unwrap();
    assert!(!store.delete("x", version(3)).unwrap(), "there is nothing");
    assert!(!at.exists());

    for left in [&b""[..], b"short"] {
        std::fs::write(&grave, left).unwrap();
        assert_eq!(store.version("x").unwrap(), Version::default());
        assert!(!store.delete("x", version(4)).unwrap());
        store.put("x", version(4), &[b"data"], true).unwrap();
        assert_eq!(read(&store, "x").unwrap(), b"data");
        assert!(store.delete("x", version(5)).unwrap());
        std::fs::write(&at, left).unwrap();
        std::fs::remove_file(&grave).unwrap();
        gone(&store);
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_a_killed_server_was_writing_goes_when_another_begins() {
    let dir = std::env::temp_dir().join(format!("objectstore-test-left-{}", std::process::id()));
    let living = Store::open(dir.clone()).unwrap();
    let id = files(&dir).iter().find_map(|f| f.strip_prefix(".lock.").map(str::to_owned)).unwrap();
    living.put("0123456789abcdef.0", Version { count: 1, writer: 1 }, &[b"an object"], false).unwrap();
    let (of_living, of_dead) = (format!(".{id}.7"), ".0123456789abcdef.0");
    for name in [&of_living, of_dead, ".lock.0123456789abcdef", ".gone.0123456789abcdef.0"] {
        std::fs::write(dir.join(name), b"").unwrap();
    }
    let other = Store::open(dir.clone()).unwrap();
    let there = |name: &str| dir.join(name).exists();
    assert!(there(&of_living) && !there(of_dead) && !there(".lock.0123456789abcdef"), "{:?}", files(&dir));
    drop(living);
    let _third = Store::open(dir.clone()).unwrap();
    assert!(!there(&of_living) && there(".gone.0123456789abcdef.0"), "{:?}", files(&dir));
    assert_eq!(read(&other, "0123456789abcdef.0").unwrap(), b"an object");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// What a server is writing just now.
fn in_the_making(dir: &Path) -> Option<PathBuf> {
    let hidden = |e: std::fs::DirEntry| {
        e.file_name().into_string().ok().filter(|n| n.starts_with('.') && !n.starts_with(".lock"))
    };
    let name = std::fs::read_dir(dir).ok()?.flatten().find_map(hidden)?;
    Some(dir.join(name))
}

fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The first server is stopped in the middle of a put, which goes on at the second; so does another put of the same object. Then the
/// first goes on too.
#[test]
fn a_server_that_was_only_slow_overwrites_nothing() {
    let setup = Setup::new("slow");
    let objects = setup.dir.join("objects");
    let [old, new] = ["old", "new"].map(|name| {
        let at = setup.dir.join(name);
        std::fs::write(&at, name.repeat(8_000_000)).unwrap();
        at.to_str().unwrap().to_owned()
    });
    let slow = Pid::from_child(&setup.servers[0].0);
    for attempt in 0.. {
        assert!(attempt < 20, "never stopped in time");
        let mut put =
            Server(program().arg("--book").arg(&setup.book).args(["put", "x", &old]).spawn().unwrap());
        let beside = until("it is being written", || in_the_making(&objects));
        kill_process(slow, Signal::STOP).unwrap();
        if !beside.exists() {
            // It was quicker.
            kill_process(slow, Signal::CONT).unwrap();
            assert!(put.0.wait().unwrap().success());
            continue;
        }
        let done = until("the put goes on at the other server", || put.0.try_wait().unwrap());
        assert!(done.success());
        let ended = setup.command(&["put", "x", &new]);
        assert!(ended.good, "{}", ended.err);
        assert!(beside.exists(), "the first server is still at it");
        kill_process(slow, Signal::CONT).unwrap();
        until("the first server has done it", || (!beside.exists()).then_some(()));
        break;
    }
    let got = setup.command(&["get", "x"]);
    assert!(
        got.good && got.out == std::fs::read(&new).unwrap(),
        "what was acknowledged last is lost: {}",
        got.err
    );
}
