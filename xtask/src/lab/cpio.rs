//! Writes the archives the kernel unpacks as its initial file system: cpio in the `newc` format
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The kernel takes several one after another.

use std::fmt::Write as _;

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;

/// An archive in the making.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder; its parent must be there already.
    pub(crate) fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER | 0o755, &[]);
    }

    /// Adds a file with its permission bits.
    ///
    /// # Panics
    /// Over 4 GiB, which the format cannot hold.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, FILE | mode, content);
    }

    /// The whole archive, closed and padded so that another may follow.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let size = u32::try_from(content.len()).expect("an initial file system's file is below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a file's name is short");
        self.entries += 1;
        // inode, mode, uid, gid, links, time, size, device (2), device of special file (2), name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_or_cpio_bytes_are_as_the_format_says() {
        let mut archive = Archive::default();
        archive.folder("d");
        archive.file("d/f", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        // Header 110 + "d\0" = 112, already a multiple of 4; then the file's header.
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000041ed");
        assert_eq!(&bytes[112..118], b"070701");
        assert_eq!(&bytes[112 + 54..112 + 62], b"00000005");
        assert_eq!(&bytes[112 + 110..112 + 114], b"d/f\0");
        assert_eq!(&bytes[112 + 116..112 + 121], b"hello");
        assert_eq!(&bytes[112 + 124 + 110..][..10], b"TRAILER!!!");
    }
}
