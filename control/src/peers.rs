//! Messages between control nodes. Raft forgives loss, so each neighbour has a bounded queue; what does not fit is dropped
//! and what cannot be sent is reported.

use crate::ControlError;
use crate::raft::Input;
use crate::shared::Control;
use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_state::State;
use tidegate_control_types::wire::{MAX_FRAME, VERSION};
use tidegate_node::link::LinkError;
use tokio::sync::mpsc;

const QUEUE: usize = 4096;
const MOST_PER_BATCH: usize = 256;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Peers {
    queues: Mutex<HashMap<u64, mpsc::Sender<Message>>>,
    /// Where messages of a node came from: a node that joins knows nobody's address from the log yet.
    seen: Mutex<HashMap<u64, String>>,
}

impl Peers {
    #[must_use]
    pub fn address(&self, id: u64, state: &State) -> Option<String> {
        let logged = state.members().find(|m| m.0 == id).map(|m| m.2.to_owned());
        logged.or_else(|| self.seen.lock().get(&id).cloned())
    }

    pub fn saw(&self, id: u64, address: &str) {
        let mut seen = self.seen.lock();
        if seen.len() < 64 && seen.get(&id).is_none_or(|a| a != address) {
            seen.insert(id, address.into());
        }
    }

    pub fn send(&self, control: &Arc<Control>, messages: Vec<Message>) {
        let mut queues = self.queues.lock();
        for message in messages {
            let to = message.to;
            let queue = queues.entry(to).or_insert_with(|| {
                let (sender, receiver) = mpsc::channel(QUEUE);
                tokio::spawn(deliver(to, receiver, Arc::downgrade(control)));
                sender
            });
            if let Err(mpsc::error::TrySendError::Full(lost)) = queue.try_send(message) {
                not_sent(control, to, &[lost]);
            }
        }
    }
}

fn not_sent(control: &Control, id: u64, messages: &[Message]) {
    control.input(Input::Unreachable { id });
    if messages.iter().any(|m| m.get_msg_type() == MessageType::MsgSnapshot) {
        control.input(Input::SnapshotSent { id, arrived: false });
    }
}

async fn deliver(id: u64, mut queue: mpsc::Receiver<Message>, control: std::sync::Weak<Control>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, MOST_PER_BATCH).await > 0 {
        let Some(control) = control.upgrade() else { return };
        let address = control.peers.address(id, &control.raft.state.read());
        let sent = match address {
            Some(address) => post(&control, &address, &batch).await,
            None => Err("its address is not known".into()),
        };
        match sent {
            Ok(()) => {
                if batch.iter().any(|m| m.get_msg_type() == MessageType::MsgSnapshot) {
                    control.input(Input::SnapshotSent { id, arrived: true });
                }
            }
            Err(error) => {
                tracing::debug!(to = id, error, "Raft messages were not delivered");
                not_sent(&control, id, &batch);
            }
        }
        batch.clear();
    }
}

async fn post(control: &Control, address: &str, batch: &[Message]) -> Result<(), String> {
    let body = encode(batch).map_err(|e| e.to_string())?;
    let mine = control.settings.address.clone().unwrap_or_default();
    let path = format!("/raft?log={}&from={}&address={mine}", control.log(), control.raft.id);
    let sent = control.links.call(address, "control", &path, body, SEND_TIMEOUT).await;
    if matches!(sent, Err(LinkError::Refused { status: 410, .. })) {
        control.end(ControlError::Removed(control.settings.data.display().to_string()).to_string());
    }
    sent.map(|_| ()).map_err(|e| e.to_string())
}

/// One version byte, then each message with its length (u32, big endian).
fn encode(batch: &[Message]) -> Result<Vec<u8>, protobuf::ProtobufError> {
    let mut out = vec![VERSION];
    for message in batch {
        let bytes = message.write_to_bytes()?;
        out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&bytes);
    }
    Ok(out)
}

/// What [`encode`] wrote; `None` where it is anything else.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Vec<Message>> {
    let (&VERSION, mut rest) = bytes.split_first()? else { return None };
    let mut out = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return None;
        }
        let (message, after) = more.split_at_checked(length)?;
        out.push(Message::parse_from_bytes(message).ok()?);
        rest = after;
    }
    rest.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_is_no_message_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&[&[VERSION][..], &bytes].concat());
        }
    }

    #[test]
    fn a_batch_is_read_back() {
        let batch: Vec<_> = (0..3).map(|n| Message { to: n, term: 9, ..Message::default() }).collect();
        assert_eq!(decode(&encode(&batch).unwrap()).unwrap(), batch);
        assert!(decode(&[9]).is_none() && decode(&[]).is_none());
    }
}
