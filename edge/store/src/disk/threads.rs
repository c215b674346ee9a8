//! One thread writes, a few read.

use super::{Executor, Tier};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

const READERS: usize = 4;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Signal {
    /// There is something to write; nothing more will come.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

pub struct Threads {
    reads: Mutex<mpsc::Sender<Work>>,
    signal: Arc<Signal>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Threads {
    /// Begins with finding what an earlier life left behind; until that is done nothing is found.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(tier: &Arc<Tier>) -> io::Result<Self> {
        let (reads, work) = mpsc::channel::<Work>();
        let work = Arc::new(Mutex::new(work));
        for n in 0..READERS {
            let work = Arc::clone(&work);
            let next = move || work.lock().recv();
            std::thread::Builder::new().name(format!("disk-read-{n}")).spawn(move || {
                while let Ok(work) = next() {
                    work();
                }
            })?;
        }
        let signal: Arc<Signal> = Arc::default();
        let (tier, told) = (Arc::clone(tier), Arc::clone(&signal));
        let writer = std::thread::Builder::new().name("disk-write".into()).spawn(move || {
            tier.recover();
            loop {
                let ends = {
                    let mut state = told.state.lock();
                    while !state.0 && !state.1 {
                        told.changed.wait(&mut state);
                    }
                    state.0 = false;
                    state.1
                };
                if ends {
                    return tier.close();
                }
                tier.work();
            }
        })?;
        Ok(Self { reads: Mutex::new(reads), signal, writer: Mutex::new(Some(writer)) })
    }

    fn tell(&self, ends: bool) {
        let mut state = self.signal.state.lock();
        state.0 = true;
        state.1 |= ends;
        self.signal.changed.notify_one();
    }
}

impl Executor for Threads {
    fn read(&self, work: Work) {
        // It fails only where the readers are gone, and whoever waits is told by the work being dropped.
        let _ = self.reads.lock().send(work);
    }

    fn wake_writer(&self) {
        self.tell(false);
    }

    fn close(&self) {
        self.tell(true);
        if let Some(writer) = self.writer.lock().take() {
            let _ = writer.join();
        }
    }
}
