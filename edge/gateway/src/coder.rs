//! Codings of stored bodies (RFC 9110 section 8.4), made once for each response and coding, by threads of low priority: a
//! request is never kept waiting for one, and gets the response as it is until it is there.

use crate::site::Counters;
use bytes::Bytes;
use parking_lot::Mutex;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use tidegate_cache::{CacheKey, Coding};
use tidegate_store::{CHUNK, Piece, Store, StoredResponse};

/// Bodies that may wait to be coded; what comes on top is tried again when it is asked for again.
const MOST_WAITING: usize = 64;
/// The longest body that is coded, in bytes: its coded form is made in one piece of memory.
const MOST_CODED: u64 = 64 << 20;
/// How much of a body a coding has to save at least: a twentieth.
const LEAST_GAIN: usize = 20;
/// As low as it gets: cores that nobody else wants.
const NICENESS: i32 = 19;

/// What is to be made.
pub struct Job {
    pub store: Arc<Store>,
    pub key: CacheKey,
    pub response: Arc<StoredResponse>,
    pub coding: Coding,
    pub counters: Arc<Counters>,
}

/// The way to the threads; they end with it.
#[derive(Clone)]
pub struct Coder(SyncSender<Job>);

impl Coder {
    /// # Errors
    /// No thread can be started.
    pub fn start(threads: usize) -> io::Result<Self> {
        let (sender, jobs) = mpsc::sync_channel::<Job>(MOST_WAITING);
        let jobs = Arc::new(Mutex::new(jobs));
        for n in 0..threads.max(1) {
            let jobs = Arc::clone(&jobs);
            let next = move || jobs.lock().recv();
            std::thread::Builder::new().name(format!("coder-{n}")).spawn(move || {
                // Of this thread alone, as Linux has it. One that may not step back is as good as any other.
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
                while let Ok(job) = next() {
                    job.run();
                }
            })?;
        }
        Ok(Self(sender))
    }

    /// Begins to make a coding, where nobody has so far.
    pub fn make(&self, job: Job) {
        let Some(codings) = job.response.codings.as_ref().filter(|c| c.begin(job.coding)) else { return };
        let codings = Arc::clone(codings);
        let coding = job.coding;
        if self.0.try_send(job).is_err() {
            codings.give_up(coding);
        }
    }
}

impl Job {
    fn run(self) {
        let length = self.response.body.len();
        if length > MOST_CODED {
            return;
        }
        let Some(coded) = self.code() else {
            if let Some(codings) = &self.response.codings {
                codings.give_up(self.coding);
            }
            return;
        };
        // What gains nothing stays begun, so that nobody tries again.
        let saved = usize::try_from(length).unwrap_or(0).saturating_sub(coded.len());
        if saved > coded.len() / LEAST_GAIN {
            let coded = Bytes::from(coded);
            let pieces: Vec<_> = (0..coded.len()).step_by(CHUNK).map(|at| coded.slice(at..coded.len().min(at + CHUNK))).collect();
            // Pieces of a large one are kept and go one by one.
            let pieces = if pieces.len() > 1 { pieces.iter().map(|p| Bytes::copy_from_slice(p)).collect() } else { pieces };
            self.store.put_coding(&self.key, &self.response.body, self.coding, &pieces);
            Counters::add(&self.counters.codings, 1);
        }
    }

    /// `None`: a piece of the body is gone.
    fn code(&self) -> Option<Vec<u8>> {
        let last = self.response.body.len().checked_sub(1)?;
        let mut pieces = self.store.body(&self.response.body, 0, last)?.into_iter().map(|piece| match piece {
            Piece::Here(bytes) => Some(bytes),
            Piece::OnDisk(piece) => self.store.read(piece).blocking_recv().ok(),
        });
        let mut coded = match self.coding {
            Coding::Brotli => {
                let mut out = brotli::CompressorWriter::new(Vec::new(), 4096, 6, 22);
                write(&mut out, &mut pieces)?;
                out.into_inner()
            }
            Coding::Zstd => {
                // Of a window of 8 MiB at most (RFC 9659), as this level has it.
                let mut out = zstd::Encoder::new(Vec::new(), 9).ok()?;
                write(&mut out, &mut pieces)?;
                out.finish().ok()?
            }
            Coding::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                write(&mut out, &mut pieces)?;
                out.finish().ok()?
            }
        };
        coded.shrink_to_fit();
        Some(coded)
    }
}

fn write(out: &mut impl Write, pieces: &mut impl Iterator<Item = Option<Bytes>>) -> Option<()> {
    pieces.try_for_each(|piece| out.write_all(&piece?).ok())
}
