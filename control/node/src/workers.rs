//! Worker threads: one per core, each with its own current-thread runtime. Nothing crosses threads on a memory hit; what
//! the network changes comes to each worker as a message, and counts as applied once every worker has taken it in.

use crate::NodeError;
use crate::lifecycle::Stopping;
use crate::network::Update;
use std::future::Future;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tidegate_control_types::explain::{Asked, Explained, Question, Said};
use tidegate_control_types::planted::Bug;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

/// An update for one worker, and how it says that it has applied it.
pub struct Delivery {
    pub update: Arc<Update>,
    pub applied: oneshot::Sender<()>,
}

/// What comes to a worker beside its clients.
pub enum ToWorker {
    Update(Delivery),
    Explain(Box<Question>, oneshot::Sender<Explained>),
}

pub type Inbox = mpsc::UnboundedReceiver<ToWorker>;

/// The ways to all workers.
#[derive(Clone, Default)]
pub struct Outbox(Vec<mpsc::UnboundedSender<ToWorker>>);

impl Outbox {
    #[must_use]
    pub fn new(workers: Vec<mpsc::UnboundedSender<ToWorker>>) -> Self {
        Self(workers)
    }

    /// Hands `update` to every worker and waits until all have applied it. A worker that has ended serves nothing any
    /// more and is not waited for.
    pub async fn deliver(&self, update: &Arc<Update>) {
        let sent = self.0.iter().filter_map(|worker| {
            let (applied, done) = oneshot::channel();
            worker.send(ToWorker::Update(Delivery { update: Arc::clone(update), applied })).ok().map(|()| done)
        });
        let waiting: Vec<_> = sent.collect();
        for done in waiting {
            let _ = done.await;
            if Bug::AcknowledgedByOneWorker.is_planted() {
                return;
            }
        }
    }
}

impl Outbox {
    /// What a worker that runs says of a request; `None`: none runs, it takes too long, or it is asked something else.
    pub async fn explain(&self, asked: Asked) -> Option<Said> {
        let Asked::Request(question) = asked else { return None };
        let question = Box::new(question);
        let (reply, replied) = oneshot::channel();
        let mut asked = ToWorker::Explain(question, reply);
        for worker in &self.0 {
            match worker.send(asked) {
                Ok(()) => return tokio::time::timeout(EXPLAINS_WITHIN, replied).await.ok()?.ok().map(Said::Request),
                Err(mpsc::error::SendError(back)) => asked = back,
            }
        }
        None
    }
}

/// It may have to read from a disk.
const EXPLAINS_WITHIN: Duration = Duration::from_secs(2);

pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

/// How many workers a node has where its file says "cores".
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Workers {
    /// Starts one thread for each of `seeds`; `run` makes the worker out of its seed on the thread itself, and the thread
    /// ends when its future does.
    ///
    /// # Errors
    /// A thread or a runtime cannot be made.
    pub fn start<S, F, R>(name: &str, seeds: Vec<S>, run: F) -> Result<(Self, Outbox), NodeError>
    where
        S: Send + 'static,
        F: Fn(S, Inbox) -> R + Clone + Send + 'static,
        R: Future<Output = ()>,
    {
        let fail = |e: std::io::Error| NodeError::Runtime(format!("cannot start a worker: {e}"));
        let (mut threads, mut outbox) = (Vec::new(), Outbox::default());
        for (number, seed) in seeds.into_iter().enumerate() {
            let (sender, inbox) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build().map_err(fail)?;
            let run = run.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-{number}"));
            threads.push(thread.spawn(move || LocalSet::new().block_on(&runtime, run(seed, inbox))).map_err(fail)?);
            outbox.0.push(sender);
        }
        Ok((Self { threads }, outbox))
    }

    /// Starts a thread for work beside the workers that is not `Send`; it ends with the role.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub fn start_aside<F, R>(name: &str, stopping: &Stopping, run: F) -> Result<Self, NodeError>
    where
        F: Fn() -> R + Clone + Send + 'static,
        R: Future<Output = ()>,
    {
        let work = move |mut stopping: Stopping, _: Inbox| {
            let work = run();
            async move {
                tokio::select! {
                    () = work => {}
                    () = stopping.stopped() => {}
                }
            }
        };
        Ok(Self::start(name, vec![stopping.clone()], work)?.0)
    }

    /// Waits until every worker has ended. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}
