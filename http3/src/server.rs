//! A client's connection, from its handshake to its end.

use crate::code::Code;
use crate::control;
use crate::exchange::Exchange;
use crate::frame;
use crate::received::Received;
use crate::share::Shares;
use crate::varint;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, Response};
use quinn::{Connection, SendStream, VarInt};
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Answering, ResponseBody};
use tokio::sync::mpsc;

#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Bytes of a head's fields.
    pub head: usize,
    /// From the beginning of a request to the end of its head.
    pub head_timeout: Duration,
    /// Once the server is to stop: for requests that are not over.
    pub drain: Duration,
    /// Bytes of responses that wait for the client to acknowledge them, and a piece of each.
    pub unacknowledged: u64,
}

/// Marks a request that came before the handshake was over: somebody may have recorded it and sent it again (RFC 8470).
#[derive(Clone, Copy, Debug)]
pub struct EarlyData;

/// What a response may take.
pub(crate) type Answered = Response<ResponseBody>;

/// What the exchanges of a connection share.
pub(crate) struct Shared<S> {
    pub service: S,
    pub settings: ServerSettings,
    pub connection: Connection,
    pub shares: Arc<Shares>,
}

/// Serves a connection to its end, or until `stopping`, and from then on to the end of its requests; or until `expired`.
pub async fn serve<S>(
    connection: Connection,
    settings: &ServerSettings,
    service: S,
    stopping: impl Future<Output = ()>,
    expired: impl Future<Output = ()>,
) where
    S: Fn(Request<Received>, Interim) -> Answering<Answered> + 'static,
{
    let (mut expired, mut stopping) = (pin!(expired), pin!(stopping));
    let begun = tokio::select! {
        // A client may let us open no stream.
        begun = tokio::time::timeout(settings.head_timeout, begin(&connection, settings)) => begun.ok().and_then(Result::ok),
        () = expired.as_mut() => None,
        () = stopping.as_mut() => None,
    };
    let Some(mut ours) = begun else { return connection.close(Code::STREAM_CREATION_ERROR.into(), b"no control stream can be opened") };
    tokio::task::spawn_local(control::read(connection.clone()));
    let shares = Shares::new(settings.unacknowledged);
    let shared = Rc::new(Shared { service, settings: *settings, connection: connection.clone(), shares });
    // Each response holds the other end until its client has it.
    let (alive, mut all_over) = mpsc::channel::<Infallible>(1);
    let mut next = 0;
    let within = tokio::select! {
        () = accept(&shared, &alive, &mut next) => Duration::ZERO,
        () = expired.as_mut() => FAREWELL,
        () = stopping.as_mut() => settings.drain,
    };
    let _ = tokio::time::timeout(within, async {
        // What is on its way while the client hears of it is answered still (RFC 9114 section 5.2).
        let _ = go_away(&mut ours, LAST).await;
        let a_while = tokio::time::sleep(connection.rtt() * 2 + ON_ITS_WAY);
        tokio::select! {
            () = accept(&shared, &alive, &mut next) => return,
            () = a_while => {}
        }
        let _ = go_away(&mut ours, next).await;
        drop(alive);
        tokio::select! {
            _ = all_over.recv() => {}
            () = refuse(&connection) => return,
        }
        // Whoever has all answers ends the connection.
        let _ = tokio::time::timeout(connection.rtt() * 2 + ON_ITS_WAY, connection.closed()).await;
    })
    .await;
    connection.close(Code::NO_ERROR.into(), b"");
}

/// For one that is idle, or takes nothing.
const FAREWELL: Duration = Duration::from_secs(1);
/// For packets between the two ends of a connection, beside its measured time.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// No stream has a greater number.
const LAST: u64 = (1 << 62) - 4;

/// Opens our control stream (RFC 9114 section 6.2.1). There are no QPACK streams of ours: without a dynamic table they would be silent.
async fn begin(connection: &Connection, settings: &ServerSettings) -> Result<SendStream, ()> {
    const MAX_FIELD_SECTION_SIZE: u64 = 0x6;
    const ENABLE_CONNECT_PROTOCOL: u64 = 0x8;
    let mut payload = BytesMut::new();
    for (name, value) in [(MAX_FIELD_SECTION_SIZE, settings.head as u64), (ENABLE_CONNECT_PROTOCOL, 1)] {
        varint::write(name, &mut payload);
        varint::write(value, &mut payload);
    }
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    frame::head(frame::SETTINGS, payload.len(), &mut bytes);
    bytes.put_slice(&payload);
    let mut ours = connection.open_uni().await.map_err(drop)?;
    // What is said of the connection does not wait for responses, however urgent they are.
    let _ = ours.set_priority(i32::MAX);
    ours.write_chunk(bytes.freeze()).await.map_err(drop)?;
    Ok(ours)
}

async fn go_away(ours: &mut SendStream, next: u64) -> Result<(), quinn::WriteError> {
    let (mut payload, mut bytes) = (BytesMut::new(), BytesMut::new());
    varint::write(next, &mut payload);
    frame::head(frame::GOAWAY, payload.len(), &mut bytes);
    bytes.put_slice(&payload);
    ours.write_chunk(bytes.freeze()).await
}

/// Takes requests until the connection is lost. `next`: the first stream that has not come.
async fn accept<S>(shared: &Rc<Shared<S>>, alive: &mpsc::Sender<Infallible>, next: &mut u64)
where
    S: Fn(Request<Received>, Interim) -> Answering<Answered> + 'static,
{
    while let Ok((send, receive)) = shared.connection.accept_bi().await {
        *next = VarInt::from(send.id()).into_inner() + 4;
        let mut exchange = Exchange::new(Rc::clone(shared), send, receive, alive.clone());
        // What is there at once goes out at once.
        if Pin::new(&mut exchange).poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::task::spawn_local(exchange);
        }
    }
}

/// Requests that came too late may be sent elsewhere.
async fn refuse(connection: &Connection) {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let _ = send.reset(Code::REQUEST_REJECTED.into());
        let _ = receive.stop(Code::REQUEST_REJECTED.into());
    }
}

/// A frame's head, for what `length` bytes follow.
pub(crate) fn data_head(length: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(9);
    varint::write(frame::DATA, &mut bytes);
    varint::write(length, &mut bytes);
    bytes.freeze()
}
