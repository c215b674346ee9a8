//! Both ends against the crate h2 at the other, over a pipe.

use crate::{ClientSettings, KeepAlive, Received, Sender, ServerSettings, Windows, connect, serve};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Answering, RequestBody, ResponseBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;

const CLIENT: ClientSettings = ClientSettings {
    head: 64 << 10,
    windows: Windows { few: 1 << 20, many: 1 << 20 },
    keep_alive: KeepAlive { every: Duration::from_secs(2), within: Duration::from_secs(2) },
};

const SERVER: ServerSettings = ServerSettings {
    streams: 100,
    head: 64 << 10,
    stream_window: 1 << 20,
    connection_window: 1 << 20,
    send_buffer: 256 << 10,
    keep_alive: CLIENT.keep_alive,
    provoked_resets: 100,
    extended_connect: false,
    drain: Duration::from_secs(5),
};

fn on_worker<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

fn get() -> Request<RequestBody> {
    Request::get("https://h.example/").body(RequestBody::Empty).unwrap()
}

type Accepted = (Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// Our client, and an h2 server that takes `most` requests at once and hands them to the test.
async fn client(most: u32) -> (Sender, tokio::sync::mpsc::UnboundedReceiver<Accepted>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (hand_over, accepted) = tokio::sync::mpsc::unbounded_channel();
    let server = tokio::task::spawn_local(async move {
        let mut server = h2::server::Builder::new().max_concurrent_streams(most).handshake(theirs).await.unwrap();
        while let Some(Ok(request)) = server.accept().await {
            let _ = hand_over.send(request);
        }
    });
    (connect(ours, &CLIENT).await.unwrap(), accepted, server)
}

/// The response, or an error and whether the request was sent.
type Sent = Result<Response<Received>, (h2::Error, bool)>;

fn begin(sender: &Sender) -> tokio::task::JoinHandle<Sent> {
    let mut sender = sender.clone();
    tokio::task::spawn_local(async move {
        let slot = sender.slot().await.map_err(|error| (error, false))?;
        sender.send(slot, get(), None).await.map_err(|error| (error, true))
    })
}

#[test]
fn no_more_requests_are_handed_over_than_the_server_takes_and_the_others_come_back() {
    on_worker(async {
        let (mut sender, mut accepted, server) = client(2).await;
        // With the first its settings come.
        let first = begin(&sender);
        let (_, mut respond) = accepted.recv().await.unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(first.await.unwrap().ok().unwrap().status(), StatusCode::OK);

        let mut sent: Vec<_> = (0..4).map(|_| begin(&sender)).collect();
        let (a, b) = (accepted.recv().await.unwrap(), accepted.recv().await.unwrap());
        // One that is given up while it waits is never heard of.
        sent.pop().unwrap().abort();
        assert!(tokio::time::timeout(Duration::from_millis(500), accepted.recv()).await.is_err());
        let mut respond = a.1;
        respond.send_response(Response::new(()), true).unwrap();
        drop(sent.remove(0).await.unwrap().ok().unwrap());
        let third = accepted.recv().await.unwrap();
        let waiting = begin(&sender);
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.abort();
        let lost = waiting.await.unwrap().err().unwrap();
        assert!(!lost.1, "nothing of it was sent");
        for answered in sent {
            assert!(answered.await.unwrap().err().unwrap().1);
        }
        drop((b, third));
        assert!(sender.is_closed());
    });
}

#[test]
fn a_connection_that_the_server_drains_takes_no_more_requests() {
    on_worker(async {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (hand_over, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let drains = Rc::new(tokio::sync::Notify::new());
        let when = Rc::clone(&drains);
        tokio::task::spawn_local(async move {
            let mut server = h2::server::handshake(theirs).await.unwrap();
            loop {
                tokio::select! {
                    request = server.accept() => match request {
                        Some(Ok(request)) => drop(hand_over.send(request)),
                        _ => return,
                    },
                    () = when.notified() => server.graceful_shutdown(),
                }
            }
        });
        let mut sender = connect(ours, &CLIENT).await.unwrap();
        let slow = begin(&sender);
        let (_, mut respond): Accepted = accepted.recv().await.unwrap();
        assert!(!sender.is_closed());
        drains.notify_one();
        while !sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!begin(&sender).await.unwrap().err().unwrap().1, "it comes back unsent");
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(slow.await.unwrap().ok().unwrap().status(), StatusCode::OK, "the open one is answered");
    });
}

#[test]
fn interim_responses_without_end_end_their_connection() {
    on_worker(async {
        let (mut sender, mut accepted, _server) = client(10).await;
        let response = begin(&sender);
        let (_, mut respond) = accepted.recv().await.unwrap();
        tokio::task::spawn_local(async move {
            for _ in 0..20_000 {
                let early = Response::builder().status(StatusCode::EARLY_HINTS).body(()).unwrap();
                respond.send_informational(early).unwrap();
                tokio::task::yield_now().await;
            }
        });
        let (error, _) = response.await.unwrap().err().unwrap();
        assert!(error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) && !error.is_remote() && !error.is_library(), "{error}");
        assert!(sender.is_closed());
    });
}

#[test]
fn a_reset_is_never_the_end_of_a_body() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        on_worker(async {
            let (sender, mut accepted, _server) = client(10).await;
            let response = begin(&sender);
            let (_, mut respond) = accepted.recv().await.unwrap();
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"half of it"), false).unwrap();
            let mut got = response.await.unwrap().ok().unwrap().into_body();
            assert_eq!(got.frame().await.unwrap().unwrap().into_data().unwrap(), "half of it");
            assert!(!got.is_end_stream());
            body.send_reset(reason);
            assert!(got.frame().await.unwrap().is_err());
        });
    }
}

#[test]
fn a_server_that_is_gone_without_a_word_is_noticed_while_somebody_waits_for_it() {
    on_worker(async {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut server = Box::pin(h2::server::handshake(theirs));
        let mut sender = None;
        let connecting = tokio::task::spawn_local(async move { connect(ours, &CLIENT).await.unwrap() });
        let mut connection = server.as_mut().await.unwrap();
        sender.replace(connecting.await.unwrap());
        let mut sender = sender.unwrap();
        let first = begin(&sender);
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        let driven = tokio::time::timeout(Duration::from_secs(60), connection.accept()).await;
        assert!(driven.is_err(), "nothing more comes of an idle connection, pings neither");
        drop(first.await.unwrap().ok().unwrap());
        // From now on it says nothing.
        let began = tokio::time::Instant::now();
        assert!(begin(&sender).await.unwrap().is_err());
        assert!(began.elapsed() < Duration::from_secs(3) && sender.is_closed(), "{:?}", began.elapsed());
    });
}

type Waiting = Rc<RefCell<Vec<(Interim, oneshot::Sender<Response<ResponseBody>>)>>>;

/// Our server, whose requests wait for the test.
async fn serve_waiting(io: DuplexStream, waiting: Waiting, stopping: impl Future<Output = ()>) {
    let service = |_: Request<Received>, interim| {
        let (answer, answered) = oneshot::channel();
        waiting.borrow_mut().push((interim, answer));
        Answering::later(async move { answered.await.unwrap() })
    };
    serve(io, &SERVER, service, stopping).await.unwrap();
}

/// It, and an h2 client.
async fn server(stopping: impl Future<Output = ()> + 'static) -> (h2::client::SendRequest<Bytes>, Waiting, tokio::task::JoinHandle<()>) {
    let (ours, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 20);
    let waiting = Waiting::default();
    let served = tokio::task::spawn_local(serve_waiting(ours, Rc::clone(&waiting), stopping));
    let (sender, connection) = h2::client::handshake(theirs).await.unwrap();
    tokio::task::spawn_local(async move { connection.await.unwrap() });
    (sender.ready().await.unwrap(), waiting, served)
}

async fn settled() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Kind and stream of each frame that is there by now.
async fn frames(from: &mut DuplexStream) -> Vec<(u8, u8)> {
    let mut frames = Vec::new();
    let mut head = [0; 9];
    while tokio::time::timeout(Duration::from_millis(100), from.read_exact(&mut head)).await.is_ok_and(|read| read.is_ok()) {
        frames.push((head[3], head[8]));
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        from.read_exact(&mut vec![0; length]).await.unwrap();
    }
    frames
}

#[test]
fn a_stream_that_was_reset_takes_no_interim_response() {
    const HEADERS: u8 = 1;
    on_worker(async {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let waiting = Waiting::default();
        tokio::task::spawn_local(serve_waiting(ours, Rc::clone(&waiting), std::future::pending()));
        // GET https://h/
        let head = [0x82, 0x87, 0x84, 0x41, 1, b'h'];
        let get = |stream| frame(HEADERS, 0x5, stream, &head);
        let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), get(1), get(3)].concat();
        theirs.write_all(&bytes).await.unwrap();
        frames(&mut theirs).await;
        theirs.write_all(&frame(3, 0, 1, &[0, 0, 0, 8])).await.unwrap();
        settled().await;
        for (interim, _) in &*waiting.borrow() {
            interim.pass(StatusCode::EARLY_HINTS, &HeaderMap::new());
        }
        assert_eq!(frames(&mut theirs).await, [(HEADERS, 3)]);
    });
}

/// Some clients that are reset drop a response that they have.
#[test]
fn an_early_answer_is_followed_by_no_reset() {
    const HEADERS: u8 = 1;
    for body in ["", "page"] {
        on_worker(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let waiting = Waiting::default();
            tokio::task::spawn_local(serve_waiting(ours, Rc::clone(&waiting), std::future::pending()));
            // POST https://h/, whose body is yet to come
            let head = [0x83, 0x87, 0x84, 0x41, 1, b'h'];
            let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(HEADERS, 0x4, 1, &head)].concat();
            theirs.write_all(&bytes).await.unwrap();
            frames(&mut theirs).await;
            let (_, answer) = waiting.borrow_mut().pop().unwrap();
            assert!(answer.send(Response::new(ResponseBody::whole(Bytes::from_static(body.as_bytes())))).is_ok());
            let came = frames(&mut theirs).await;
            assert!(came[0] == (HEADERS, 1) && came.iter().all(|(kind, _)| *kind <= HEADERS), "{came:?}");
            theirs.write_all(&frame(0, 0x1, 1, b"rest")).await.unwrap();
            let came = frames(&mut theirs).await;
            assert!(!came.iter().any(|(_, stream)| *stream == 1), "{came:?}");
        });
    }
}

#[test]
fn a_server_that_stops_finishes_what_has_begun_and_no_more() {
    on_worker(async {
        let (stop, stopping) = oneshot::channel::<()>();
        let (mut sender, waiting, served) = server(async move { drop(stopping.await) }).await;
        let (response, _) = sender.send_request(Request::get("https://h.example/").body(()).unwrap(), true).unwrap();
        settled().await;
        drop(stop);
        settled().await;
        assert!(!served.is_finished());
        let (_, answer) = waiting.borrow_mut().pop().unwrap();
        assert!(answer.send(Response::new(ResponseBody::whole(Bytes::from_static(b"page")))).is_ok());
        assert_eq!(response.await.unwrap().into_body().data().await.unwrap().unwrap(), "page");
        served.await.unwrap();
    });
}
