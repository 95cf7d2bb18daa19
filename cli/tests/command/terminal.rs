//! A pseudo-terminal for a command that draws.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// What is drawn on it is kept.
pub(crate) struct Terminal {
    ours: File,
    theirs: File,
    path: PathBuf,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub(crate) fn new(columns: u16, rows: u16) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = PathBuf::from(ptsname(&ours, Vec::new()).unwrap().into_string().unwrap());
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let theirs = open(&path);
        tcsetwinsize(&theirs, size).unwrap();
        let (ours, shown) = (File::from(ours), Arc::new(Mutex::new(Vec::new())));
        let (mut from, to) = (ours.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut part) {
                to.lock().unwrap().extend_from_slice(&part[..n]);
            }
        });
        Terminal { ours, theirs, path, shown }
    }

    /// The command's end.
    pub(crate) fn open(&self) -> File {
        open(&self.path)
    }

    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    pub(crate) fn type_in(&self, keys: &[u8]) {
        (&self.ours).write_all(keys).unwrap();
    }

    /// `true` where lines are edited and echoed, as for a shell.
    pub(crate) fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }
}

fn open(path: &PathBuf) -> File {
    let noctty = rustix::fs::OFlags::NOCTTY.bits() as i32;
    File::options().read(true).write(true).custom_flags(noctty).open(path).unwrap()
}
