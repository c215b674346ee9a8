//! Where segments are: files in a folder, or what a test puts in their place.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of a disk tier, by the segment's number.
pub trait Medium: Send + Sync {
    /// # Errors
    /// What the disk says; the same goes for all below.
    fn segments(&self) -> io::Result<Vec<u32>>;
    fn create(&self, segment: u32) -> io::Result<Arc<dyn Segment>>;
    fn open(&self, segment: u32) -> io::Result<Arc<dyn Segment>>;
    /// What is open stays readable.
    fn remove(&self, segment: u32) -> io::Result<()>;
    fn read_list(&self, segment: u32) -> io::Result<Vec<u8>>;
    fn write_list(&self, segment: u32, list: &[u8]) -> io::Result<()>;
}

pub trait Segment: Send + Sync {
    /// # Errors
    /// What the disk says; the end of the file among it.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// # Errors
    /// What the disk says; some of it may have been written.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// # Errors
    /// What the disk says.
    fn length(&self) -> io::Result<u64>;
}

/// A folder of a disk tier's own, held by one process at a time.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder where it is missing.
    ///
    /// # Errors
    /// It cannot be used, or another process uses it.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"))?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => io::Error::other("another process keeps its disk tier there"),
            std::fs::TryLockError::Error(e) => e,
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    fn file(&self, segment: u32, kind: &str) -> PathBuf {
        self.path.join(format!("{segment:08x}.{kind}"))
    }
}

impl Medium for Folder {
    fn segments(&self) -> io::Result<Vec<u32>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            // Whatever else lies there is not ours.
            let number = name.to_str().and_then(|n| n.strip_suffix(".segment")).filter(|n| n.len() == 8);
            all.extend(number.and_then(|n| u32::from_str_radix(n, 16).ok()));
        }
        Ok(all)
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn Segment>> {
        Ok(Arc::new(OpenOptions::new().create_new(true).read(true).write(true).open(self.file(segment, "segment"))?))
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn Segment>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.file(segment, "segment"))?))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        match std::fs::remove_file(self.file(segment, "list")) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::remove_file(self.file(segment, "segment"))
    }

    fn read_list(&self, segment: u32) -> io::Result<Vec<u8>> {
        std::fs::read(self.file(segment, "list"))
    }

    fn write_list(&self, segment: u32, list: &[u8]) -> io::Result<()> {
        std::fs::write(self.file(segment, "list"), list)
    }
}

impl Segment for File {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
