//! One guest that runs: QEMU as a child, and the threads that read what comes out of it.
//!
//! Each [`Channel`] is a socket that we listen on and QEMU connects to. One thread reads each; all of them end
//! when QEMU does, since its end closes the sockets. Owned by [`super::session`], which must start it from a
//! thread that outlives it: the kernel ends QEMU when that thread ends (`setpriv --pdeathsig`).

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::accel::Accel;
use super::job::{self, Side};
use super::kernel::Kernel;
use super::options::Plan;
use super::qemu::{self, Channel, Files};

/// Longest wait for QEMU to connect to its sockets.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
/// How long nobody must have been kept waiting by who reads the output, before all of it is taken for handed on.
const FREE: Duration = Duration::from_secs(1);
/// How often that is looked at: a write that takes longer is kept waiting.
const LOOK: Duration = Duration::from_millis(50);
/// What output has after the run's limit to be handed on.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of the console that are kept to be shown when a guest dies.
const TAIL_BYTES: usize = 16 << 10;

/// The last bytes of a channel.
type Tail = Arc<Mutex<VecDeque<u8>>>;

/// How far output has been handed on.
#[derive(Default)]
struct Flow {
    bytes: AtomicU64,
    /// Counts each begin and each end of a write: odd during one.
    turn: AtomicU64,
}

/// Where output goes.
pub(crate) type Sink = Box<dyn Write + Send>;

/// Where a guest's output goes.
pub(crate) struct Sinks {
    /// The command's standard output.
    pub(crate) out: Sink,
    /// The command's standard error.
    pub(crate) err: Sink,
}

/// What a guest has to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A line on its control channel.
    Line(String),
    /// It is no more.
    Gone,
}

/// What is known of a guest after its end.
pub(crate) struct Remains {
    /// The console's last lines.
    pub(crate) console: String,
    /// What QEMU's monitor said last.
    pub(crate) monitor: String,
    /// What QEMU complained of.
    pub(crate) qemu: String,
}

/// A guest that runs. Dropping it ends it.
pub(crate) struct Machine {
    /// Which one.
    pub(crate) side: Side,
    child: Child,
    control: UnixStream,
    monitor: UnixStream,
    readers: Vec<JoinHandle<()>>,
    tail: Tail,
    monitor_tail: Tail,
    complaints: PathBuf,
    /// Of output and of errors.
    flows: [Arc<Flow>; 2],
    /// The end of the run's limit.
    deadline: Instant,
}

impl Machine {
    /// Starts one, for a run that has time until `deadline`; what it has to say goes into the sinks and the events.
    ///
    /// # Errors
    /// When its files cannot be written, or QEMU ends before it has connected, or does not in time.
    pub(crate) fn start(
        plan: &Plan,
        side: Side,
        accel: Accel,
        kernel: &Kernel,
        scratch: &Path,
        (sinks, events): (Sinks, SyncSender<(Side, Event)>),
        deadline: Instant,
    ) -> Result<Self> {
        let folder = scratch.join(side.name());
        fs::create_dir(&folder)?;
        let initramfs = folder.join("initramfs");
        let mut files = fs::read(kernel.initramfs())?;
        files.extend(job::archive(plan, side, &kernel.root));
        fs::write(&initramfs, files)?;
        let listeners = listen(&folder)?;
        let (image, sockets) = (kernel.image(), folder.as_path());
        let files = Files { kernel: &image, initramfs: &initramfs, sockets, wires: scratch };
        let complaints = folder.join("qemu.err");
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", qemu::PROGRAM])
            .args(qemu::arguments(plan, side, accel, &files))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&complaints)?)
            .spawn()
            .context("setpriv")?;
        let streams = match accept(&listeners, &mut child, deadline.min(Instant::now() + CONNECT_LIMIT)) {
            Ok(streams) => streams,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(&complaints).unwrap_or_default();
                return Err(error.context(format!("QEMU did not start: {}", said.trim())));
            }
        };
        let [console, monitor, control, out, err] = streams;
        let [tail, monitor_tail] = [Tail::default(), Tail::default()];
        let log = plan.console.as_ref().map(|path| console_file(path, side)).transpose()?;
        let from_control = control.try_clone()?;
        let from_monitor = monitor.try_clone()?;
        let (kept, monitor_kept) = (Arc::clone(&tail), Arc::clone(&monitor_tail));
        let flows = <[Arc<Flow>; 2]>::default();
        let [out_flow, err_flow] = flows.clone();
        let readers = vec![
            thread::spawn(move || keep(console, &kept, log)),
            thread::spawn(move || keep(from_monitor, &monitor_kept, None)),
            thread::spawn(move || read_lines(from_control, side, &events)),
            thread::spawn(move || forward(out, sinks.out, &out_flow)),
            thread::spawn(move || forward(err, sinks.err, &err_flow)),
        ];
        Ok(Self { side, child, control, monitor, readers, tail, monitor_tail, complaints, flows, deadline })
    }

    /// Sends the guest's setup a line. A guest that has just died does not get it, which its end will tell.
    pub(crate) fn tell(&mut self, line: &str) {
        let _ = self.control.write_all(format!("{line}\n").as_bytes());
    }

    /// Plugs or unplugs the cable at one of the guest's PCI network cards.
    pub(crate) fn set_link(&mut self, netdev: &str, up: bool) {
        let state = if up { "on" } else { "off" };
        let _ = self.monitor.write_all(format!("set_link {netdev} {state}\n").as_bytes());
    }

    /// Asks where its processors stand, for [`Remains::monitor`].
    pub(crate) fn tell_registers(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let _ = self.monitor.write_all(b"info registers -a\n");
        while !text(&self.monitor_tail).contains("RIP=") && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether QEMU still runs.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until so many bytes of output and of errors have been handed on, or until the run's limit. Where the number is not known,
    /// until whoever reads them keeps up: see [`await_free`].
    pub(crate) fn await_output(&self, bytes: Option<[u64; 2]>) {
        let Some(bytes) = bytes else { return await_free(&self.flows, self.deadline) };
        let short =
            || self.flows.iter().zip(bytes).any(|(flow, all)| flow.bytes.load(Ordering::Acquire) < all);
        while short() && Instant::now() < self.deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What QEMU complains of.
    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap_or_default()
    }

    /// Ends it. Output that has reached QEMU is still handed on, until the run's limit.
    pub(crate) fn stop(mut self) -> Remains {
        self.end();
        let qemu = self.complaints();
        Remains { console: text(&self.tail), monitor: text(&self.monitor_tail), qemu }
    }

    /// Stops it dead, as a power cut does; what it still wanted to say is lost.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn end(&mut self) {
        self.kill();
        join_until(self.readers.drain(..), self.deadline.max(Instant::now() + LAST_WORDS));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn listen(folder: &Path) -> Result<[UnixListener; 5]> {
    let listeners = Channel::ALL.map(|channel| -> Result<UnixListener> {
        let listener = UnixListener::bind(channel.socket(folder))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let [a, b, c, d, e] = listeners;
    Ok([a?, b?, c?, d?, e?])
}

/// Waits until QEMU has connected to all sockets, which it does before anything else.
fn accept(listeners: &[UnixListener; 5], child: &mut Child, deadline: Instant) -> Result<[UnixStream; 5]> {
    let mut one = |listener: &UnixListener| -> Result<UnixStream> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = child.try_wait()? {
                bail!("it ended at once ({status})");
            }
            if Instant::now() > deadline {
                bail!("it does not connect");
            }
            thread::sleep(Duration::from_millis(5));
        }
    };
    let [a, b, c, d, e] = listeners;
    Ok([one(a)?, one(b)?, one(c)?, one(d)?, one(e)?])
}

fn console_file(path: &Path, side: Side) -> Result<File> {
    let mut path = path.to_owned();
    if side == Side::B {
        path.as_mut_os_string().push(".b");
    }
    File::create(&path).with_context(|| format!("--keep-console {}", path.display()))
}

/// Hands on what comes, as it comes; goes on reading when the sink takes no more, so that the guest can end.
fn forward(mut from: UnixStream, mut to: Sink, flow: &Flow) {
    let mut buffer = vec![0; 64 << 10];
    let mut open = true;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        flow.turn.fetch_add(1, Ordering::Release);
        open = open && to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_ok();
        flow.turn.fetch_add(1, Ordering::Release);
        flow.bytes.fetch_add(count as u64, Ordering::Release);
    }
}

/// Waits until for a while no write was kept waiting, or until `deadline`: what a command had written before it ended, a few pipes and
/// buffers full, has come through by then. That output goes on is no reason to wait: it is a daemon's.
fn await_free(flows: &[Arc<Flow>; 2], deadline: Instant) {
    let turns = || flows.each_ref().map(|flow| flow.turn.load(Ordering::Acquire));
    let (mut free_since, mut seen) = (Instant::now(), turns());
    while free_since.elapsed() < FREE && Instant::now() < deadline {
        thread::sleep(LOOK);
        let now = turns();
        if seen.iter().zip(now).any(|(before, now)| *before == now && now % 2 == 1) {
            free_since = Instant::now();
        }
        seen = now;
    }
}

/// Waits for the threads' ends until `deadline`. Those that are still kept waiting then, by who reads the output, end with this program.
fn join_until(threads: impl Iterator<Item = JoinHandle<()>>, deadline: Instant) {
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

/// Keeps the last of what comes, and all of it in `log`.
fn keep(mut from: UnixStream, tail: &Mutex<VecDeque<u8>>, mut log: Option<File>) {
    let mut buffer = vec![0; 4 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        if let Some(file) = &mut log {
            let _ = file.write_all(bytes);
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let excess = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..excess);
    }
}

fn text(tail: &Tail) -> String {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(tail.make_contiguous()).into_owned()
}

fn read_lines(from: UnixStream, side: Side, events: &SyncSender<(Side, Event)>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        if events.send((side, Event::Line(line))).is_err() {
            return;
        }
    }
    let _ = events.send((side, Event::Gone));
}

impl Sinks {
    /// Output that nobody wants.
    pub(crate) fn none() -> Self {
        Self { out: Box::new(std::io::sink()), err: Box::new(std::io::sink()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Keeps the writer waiting until it is told to go on, or for good.
    struct Slow(Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Output on its way to a [`Slow`] reader, who is inside of a write.
    fn on_its_way() -> ([Arc<Flow>; 2], std::sync::mpsc::Sender<()>, JoinHandle<()>) {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (go_on, slow) = channel();
        let flows = <[Arc<Flow>; 2]>::default();
        let flow = Arc::clone(&flows[0]);
        let thread = thread::spawn(move || forward(host, Box::new(Slow(slow)), &flow));
        guest.write_all(b"the last words").unwrap();
        while flows[0].turn.load(Ordering::Acquire) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        (flows, go_on, thread)
    }

    #[test]
    fn a_reader_that_pauses_is_waited_for() {
        let (flows, go_on, thread) = on_its_way();
        let reader = thread::spawn(move || {
            thread::sleep(FREE + FREE / 2);
            go_on.send(()).unwrap();
        });
        await_free(&flows, Instant::now() + Duration::from_secs(100));
        assert_eq!(flows[0].bytes.load(Ordering::Acquire), 14);
        reader.join().unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_reader_that_reads_no_more_holds_up_nothing_beyond_the_limit() {
        let (flows, _go_on, thread) = on_its_way();
        let deadline = Instant::now() + FREE + FREE / 2;
        await_free(&flows, deadline);
        assert!(Instant::now() >= deadline);
        join_until(std::iter::once(thread), deadline);
        assert_eq!(flows[0].bytes.load(Ordering::Acquire), 0);
    }

    #[test]
    fn output_that_goes_on_is_not_waited_for() {
        let flows = <[Arc<Flow>; 2]>::default();
        let (daemon, deadline) = (Arc::clone(&flows[1]), Instant::now() + Duration::from_secs(100));
        thread::spawn(move || {
            while Instant::now() < deadline {
                daemon.turn.fetch_add(1, Ordering::Release);
                thread::sleep(Duration::from_millis(1));
            }
        });
        await_free(&flows, deadline);
        assert!(Instant::now() < deadline);
    }
}
