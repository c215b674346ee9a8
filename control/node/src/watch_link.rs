//! The watch stream over a link: one HTTP/2 request whose two bodies are the two directions.

use crate::link::{BoxError, Links};
use crate::watch::{ControlPlane, NotWatching, WatchStream};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tidegate_control_types::wire::{self, Deframer};
use tidegate_control_types::{FromNode, ToNode};

pub struct LinkStream {
    out: Sender<Bytes, BoxError>,
    incoming: Incoming,
    frames: Deframer,
    /// It was opened to whoever was believed then.
    distrust: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl ControlPlane for Arc<Links> {
    type Stream = LinkStream;

    async fn watch(&self, address: &str, hello: &FromNode) -> Result<LinkStream, NotWatching> {
        let (mut out, body) = Channel::<Bytes, BoxError>::new(64);
        let distrust = Box::pin(self.trust_changes());
        say(&mut out, hello).await?;
        let request = Request::post("https://node/watch").body(body.boxed_unsync()).map_err(|e| e.to_string())?;
        let response = self.send(address, "control", request).await.map_err(|e| e.to_string())?;
        match response.status().as_u16() {
            200 => Ok(LinkStream { out, incoming: response.into_body(), frames: Deframer::default(), distrust }),
            410 => Err(NotWatching::Removed),
            other => Err(format!("{address} answered {other}").into()),
        }
    }
}

async fn say(out: &mut Sender<Bytes, BoxError>, message: &FromNode) -> Result<(), String> {
    out.send_data(wire::frame(message).into()).await.map_err(|e| format!("the stream is closed: {e}"))
}

impl WatchStream for LinkStream {
    async fn say(&mut self, message: &FromNode) -> Result<(), String> {
        say(&mut self.out, message).await
    }

    async fn next(&mut self) -> Result<ToNode, String> {
        loop {
            if let Some(message) = self.frames.take().map_err(|e| e.to_string())? {
                return Ok(message);
            }
            let frame = tokio::select! {
                frame = self.incoming.frame() => frame,
                () = &mut self.distrust => return Err("an authority was retired: the stream is opened anew".into()),
            };
            match frame {
                Some(Ok(data)) => self.frames.push(data.data_ref().map(Bytes::as_ref).unwrap_or_default()),
                Some(Err(e)) => return Err(e.to_string()),
                None => return Err("the control node closed it".into()),
            }
        }
    }

    fn come(&mut self) -> Option<Result<ToNode, String>> {
        // What was received stays in `frames` if it is no whole message.
        match std::pin::pin!(self.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        }
    }
}
