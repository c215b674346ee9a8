//! Questions to nodes: asked over their watch streams by every control node, answers gathered at the one that was asked.

use crate::shared::{Broadcast, Control};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate_control_types::NodeName;
use tidegate_control_types::explain::{Asked, Said};
use tidegate_control_types::{ToNode, wire};
use tokio::sync::mpsc;

/// How long nodes have for an answer; those behind another control node a little less.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
const MOST_QUESTIONS: usize = 64;

/// `None`: it is not for that node to say.
type Answer = (NodeName, Option<Said>);

#[derive(Default)]
pub struct Questions {
    next: AtomicU64,
    open: Mutex<HashMap<u64, mpsc::UnboundedSender<Answer>>>,
}

/// What the nodes of one control node's streams said.
#[derive(Serialize, Deserialize)]
pub struct Answers(pub Vec<Answer>);

impl Questions {
    pub fn answered(&self, number: u64, node: &NodeName, said: Option<Said>) {
        if let Some(asker) = self.open.lock().get(&number) {
            let _ = asker.send((node.clone(), said));
        }
    }
}

/// Of the nodes that watch here. Those that say nothing are left out.
pub async fn ask_here(control: &Control, asked: &Asked, within: Duration) -> Answers {
    let number = control.questions.next.fetch_add(1, Ordering::Relaxed);
    let (sender, mut answers) = mpsc::unbounded_channel();
    {
        let mut open = control.questions.open.lock();
        if open.len() >= MOST_QUESTIONS {
            return Answers(Vec::new());
        }
        open.insert(number, sender);
    }
    let frame = wire::frame(&ToNode::Explain { number, question: Box::new(asked.clone()) });
    // As many as there are streams.
    let streams = control.broadcast.send(Broadcast::Question(frame.into())).unwrap_or(0);
    let mut all = Vec::new();
    let gather = async {
        while all.len() < streams
            && let Some(answer) = answers.recv().await
        {
            all.push(answer);
        }
    };
    let _ = tokio::time::timeout(within, gather).await;
    control.questions.open.lock().remove(&number);
    Answers(all)
}

/// Of all nodes, whichever control node they watch.
pub async fn ask_all(control: &Arc<Control>, asked: &Asked) -> BTreeMap<NodeName, Said> {
    let others: Vec<String> = {
        let state = control.raft.state.read();
        let ids: Vec<u64> = state.members().map(|(id, ..)| id).filter(|id| *id != control.raft.id).collect();
        ids.into_iter().filter_map(|id| control.peers.address(id, &state)).collect()
    };
    let mut asking = tokio::task::JoinSet::new();
    for address in others {
        let (control, asked) = (Arc::clone(control), wire::encode(asked));
        asking.spawn(async move {
            let path = format!("/explain?log={}", control.log());
            let answer = control.links.call(&address, "control", &path, asked, ANSWERS_WITHIN).await;
            answer.ok().and_then(|bytes| wire::decode::<Answers>(&bytes).ok())
        });
    }
    let mut all = ask_here(control, asked, within()).await.0;
    while let Some(answer) = asking.join_next().await {
        all.extend(answer.ok().flatten().into_iter().flat_map(|a| a.0));
    }
    all.into_iter().filter_map(|(node, said)| Some((node, said?))).collect()
}

/// For the streams of one control node.
pub fn within() -> Duration {
    ANSWERS_WITHIN - Duration::from_millis(500)
}
