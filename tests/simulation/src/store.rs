//! The disk tier's disk on a cache node. It survives the process; a loss of power tears what was written last. Reads and
//! writes take their time, so that purges come in between.

use fastrand::Rng;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use tidegate_gateway::store::{Executor, Medium, Segment};

type File = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct State {
    segments: BTreeMap<u32, File>,
    lists: BTreeMap<u32, Vec<u8>>,
    fails: bool,
}

#[derive(Clone, Default)]
pub struct SimFolder(Arc<Mutex<State>>);

struct Open {
    file: File,
    folder: SimFolder,
}

impl SimFolder {
    pub fn forget(&self) {
        *self.0.lock() = State::default();
    }

    /// Nothing more can be written.
    pub fn fail(&self, fails: bool) {
        self.0.lock().fails = fails;
    }

    /// What a kernel had not written yet is gone: the end of the last file, a page in the middle, an index.
    pub fn lose_power(&self, random: &mut Rng) {
        let mut state = self.0.lock();
        let Some((last, file)) = state.segments.last_key_value().map(|(n, f)| (*n, Arc::clone(f))) else { return };
        let mut file = file.lock();
        let length = file.len();
        file.truncate(length - random.usize(..=length).min(random.usize(..10_000)));
        if random.bool() && !file.is_empty() {
            let at = random.usize(..file.len());
            let page = file.iter_mut().skip(at).take(512);
            page.for_each(|b| *b = 0);
        }
        if random.bool() {
            state.lists.remove(&last.saturating_sub(1));
        }
    }

    fn may_write(&self) -> io::Result<()> {
        if self.0.lock().fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn opened(&self, segment: u32) -> io::Result<Arc<dyn Segment>> {
        let file = self.0.lock().segments.get(&segment).map(Arc::clone).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Open { file, folder: self.clone() }))
    }
}

impl Medium for SimFolder {
    fn segments(&self) -> io::Result<Vec<u32>> {
        Ok(self.0.lock().segments.keys().copied().collect())
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn Segment>> {
        self.may_write()?;
        self.0.lock().segments.insert(segment, File::default());
        self.opened(segment)
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn Segment>> {
        self.opened(segment)
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        let mut state = self.0.lock();
        state.lists.remove(&segment);
        state.segments.remove(&segment).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_list(&self, segment: u32) -> io::Result<Vec<u8>> {
        self.0.lock().lists.get(&segment).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write_list(&self, segment: u32, list: &[u8]) -> io::Result<()> {
        self.may_write()?;
        self.0.lock().lists.insert(segment, list.to_vec());
        Ok(())
    }
}

impl Segment for Open {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let file = self.file.lock();
        let from = at.checked_add(out.len()).and_then(|end| file.get(at..end)).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.folder.may_write()?;
        let mut file = self.file.lock();
        file.resize(usize::try_from(offset).unwrap_or(0), 0);
        file.extend_from_slice(bytes);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.lock().len() as u64)
    }
}

pub enum DiskWork {
    Read(Box<dyn FnOnce() + Send>),
    Write,
}

/// What waits for the disk of a running node; the world says when it is done.
#[derive(Clone, Default)]
pub struct SimExecutor(pub Arc<Mutex<VecDeque<DiskWork>>>);

impl Executor for SimExecutor {
    fn read(&self, work: Box<dyn FnOnce() + Send>) {
        self.0.lock().push_back(DiskWork::Read(work));
    }

    fn wake_writer(&self) {
        self.0.lock().push_back(DiskWork::Write);
    }

    fn close(&self) {}
}
