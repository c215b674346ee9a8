//! Clients over HTTP/1.1, HTTP/2 and HTTP/3. All but the first use a library of another project; the first keeps every byte.

use crate::Fields;
use bytes::{Buf, Bytes};
use http::{HeaderName, HeaderValue, Request};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A stream of a client's may hold so much that it has not taken.
const WINDOW: u32 = 256 << 10;
/// Maximum time for a response, longer than a site's deadline.
const LONGEST: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    One,
    Two,
    Three,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    All,
    /// So many bytes, then a pause of so many milliseconds, and so on.
    Slow(usize, u64),
    /// It goes once it has so many bytes, or the head.
    Leaves(usize),
    /// It goes after so many milliseconds, whatever has come.
    LeavesAt(u64),
}

#[derive(Clone, Debug)]
pub struct Wish {
    pub protocol: Protocol,
    pub method: &'static str,
    pub host: String,
    pub path: String,
    pub fields: Fields,
    pub upload: Option<Vec<u8>>,
    /// Milliseconds that the upload takes.
    pub upload_takes: u64,
    pub reading: Reading,
}

impl Wish {
    /// When its client goes, whatever has come.
    fn limit(&self) -> Duration {
        match self.reading {
            Reading::LeavesAt(ms) => Duration::from_millis(ms),
            _ => LONGEST + Duration::from_millis(self.upload_takes),
        }
    }

    /// It was to wait for an answer, however long that takes.
    pub fn waits(&self) -> bool {
        !matches!(self.reading, Reading::LeavesAt(_))
    }
}

/// The response as the client has received it so far.
#[derive(Clone, Debug, Default)]
pub struct Got {
    pub status: u16,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub head_after: Option<Duration>,
    pub whole: bool,
    /// It went by itself.
    pub left: bool,
    pub error: Option<String>,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The connections of one client.
pub struct Client {
    http: SocketAddr,
    https: SocketAddr,
    tls: Arc<ClientConfig>,
    endpoint: quinn::Endpoint,
    one: Option<TcpStream>,
    two: Option<h2::client::SendRequest<Bytes>>,
    three: Option<h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>>,
}

impl Client {
    pub fn new(http: SocketAddr, https: SocketAddr, ca: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let (mut two, mut three) = (tls.clone(), tls);
        two.alpn_protocols = vec![b"h2".to_vec()];
        three.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(three).unwrap();
        let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(WINDOW.into()).receive_window(quinn::VarInt::MAX);
        quic.transport_config(Arc::new(transport));
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        endpoint.set_default_client_config(quic);
        Self { http, https, tls: Arc::new(two), endpoint, one: None, two: None, three: None }
    }

    /// It said that it closes its HTTP/1.1 connection.
    pub fn close_one(&mut self) {
        self.one = None;
    }

    pub async fn ask(&mut self, wish: &Wish) -> Got {
        let mut got = Got::default();
        let began = Instant::now();
        let asked = async {
            match wish.protocol {
                Protocol::One => self.ask_one(wish, &mut got, began).await,
                Protocol::Two => self.ask_two(wish, &mut got, began).await,
                Protocol::Three => self.ask_three(wish, &mut got, began).await,
            }
        };
        match timeout(wish.limit(), asked).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => got.error = Some(e.to_string()),
            Err(_) => got.left = true,
        }
        if got.left || got.error.is_some() {
            self.one = None;
            if got.error.is_some() {
                (self.two, self.three) = (None, None);
            }
        }
        got
    }

    async fn ask_one(&mut self, wish: &Wish, got: &mut Got, began: Instant) -> Result<(), Failed> {
        let mut stream = match self.one.take() {
            Some(stream) if is_open(&stream) => stream,
            _ => TcpStream::connect(self.http).await?,
        };
        stream.set_nodelay(true)?;
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", wish.method, wish.path, wish.host).into_bytes();
        for (name, value) in &wish.fields {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        if let Some(upload) = &wish.upload {
            head.extend(format!("Content-Length: {}\r\n", upload.len()).into_bytes());
        }
        head.extend(b"\r\n");
        stream.write_all(&head).await?;
        if let Some(upload) = &wish.upload {
            for piece in upload.chunks(upload.len() / 4 + 1) {
                sleep(Duration::from_millis(wish.upload_takes / 4)).await;
                stream.write_all(piece).await?;
            }
        }
        let mut from = One { stream, read: Vec::new(), reading: wish.reading, paused_at: 0 };
        loop {
            let head = from.until(b"\r\n\r\n").await?;
            let (first, fields) = crate::parsed(&head).ok_or("no head")?;
            let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
            if !(100..200).contains(&status) {
                (got.status, got.fields, got.head_after) = (status, fields, Some(began.elapsed()));
                break;
            }
        }
        let field = |name: &str| crate::value_of(&got.fields, name).map(|v| String::from_utf8_lossy(&v).into_owned());
        let length = field("content-length").map(|l| l.parse::<usize>()).transpose()?;
        let closes = field("connection").is_some_and(|c| c.to_ascii_lowercase().contains("close"));
        if wish.method == "HEAD" || matches!(got.status, 204 | 304) {
            got.whole = true;
        } else if field("transfer-encoding").is_some() {
            loop {
                let size = from.until(b"\r\n").await?;
                let size = usize::from_str_radix(std::str::from_utf8(&size)?.trim(), 16)?;
                if !from.take(size, &mut got.body).await? {
                    got.left = true;
                    return Ok(());
                }
                if from.until(b"\r\n").await? != b"\r\n" {
                    return Err("a chunk is longer than it says".into());
                }
                if size == 0 {
                    got.whole = true;
                    break;
                }
            }
        } else if let Some(length) = length {
            if !from.take(length, &mut got.body).await? {
                got.left = true;
                return Ok(());
            }
            got.whole = true;
        } else {
            got.left = !from.rest(&mut got.body).await?;
            got.whole = !got.left;
            return Ok(());
        }
        if !closes && from.read.is_empty() {
            self.one = Some(from.stream);
        }
        Ok(())
    }

    async fn ask_two(&mut self, wish: &Wish, got: &mut Got, began: Instant) -> Result<(), Failed> {
        let mut send = match self.two.take() {
            Some(send) => send,
            None => {
                let tcp = TcpStream::connect(self.https).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(wish.host.clone())?;
                let tls = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await?;
                let mut builder = h2::client::Builder::new();
                builder.initial_window_size(WINDOW).initial_connection_window_size((1 << 31) - 1);
                let (send, connection) = builder.handshake(tls).await?;
                tokio::spawn(connection);
                send
            }
        };
        send = send.ready().await?;
        let (response, mut body) = send.send_request(request(wish)?, wish.upload.is_none())?;
        self.two = Some(send);
        if let Some(upload) = &wish.upload {
            for piece in upload.chunks(upload.len() / 4 + 1) {
                sleep(Duration::from_millis(wish.upload_takes / 4)).await;
                let mut piece = Bytes::copy_from_slice(piece);
                while !piece.is_empty() {
                    body.reserve_capacity(piece.len());
                    let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.ok_or("the stream is gone")??;
                    body.send_data(piece.split_to(room.min(piece.len())), false)?;
                }
            }
            body.send_data(Bytes::new(), true)?;
        }
        let mut response = response.await?;
        (got.status, got.fields, got.head_after) = (response.status().as_u16(), fields_of(response.headers()), Some(began.elapsed()));
        let mut paused_at = 0;
        while let Some(data) = response.body_mut().data().await {
            let data = data?;
            got.body.extend_from_slice(&data);
            if !may_go_on(wish.reading, got.body.len(), &mut paused_at).await {
                got.left = true;
                return Ok(());
            }
            response.body_mut().flow_control().release_capacity(data.len())?;
        }
        response.body_mut().trailers().await?;
        got.whole = true;
        Ok(())
    }

    async fn ask_three(&mut self, wish: &Wish, got: &mut Got, began: Instant) -> Result<(), Failed> {
        if self.three.is_none() {
            let quic = self.endpoint.connect(self.https, &wish.host)?.await?;
            let (mut driver, send) = h3::client::new(h3_quinn::Connection::new(quic)).await?;
            tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
            self.three = Some(send);
        }
        let send = self.three.as_mut().ok_or("no connection")?;
        let mut stream = send.send_request(request(wish)?).await?;
        if let Some(upload) = &wish.upload {
            for piece in upload.chunks(upload.len() / 4 + 1) {
                sleep(Duration::from_millis(wish.upload_takes / 4)).await;
                stream.send_data(Bytes::copy_from_slice(piece)).await?;
            }
        }
        stream.finish().await?;
        let response = loop {
            let response = stream.recv_response().await?;
            if !response.status().is_informational() {
                break response;
            }
        };
        (got.status, got.fields, got.head_after) = (response.status().as_u16(), fields_of(response.headers()), Some(began.elapsed()));
        let mut paused_at = 0;
        loop {
            let Some(mut data) = stream.recv_data().await? else { break };
            let bytes = data.copy_to_bytes(data.remaining());
            got.body.extend_from_slice(&bytes);
            if !may_go_on(wish.reading, got.body.len(), &mut paused_at).await {
                // Dropping the client resets the stream.
                got.left = true;
                return Ok(());
            }
        }
        got.whole = true;
        Ok(())
    }
}

/// The other side has neither closed it nor said anything.
fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

fn request(wish: &Wish) -> Result<Request<()>, Failed> {
    let scheme = "https";
    let mut request = Request::builder().method(wish.method).uri(format!("{scheme}://{}{}", wish.host, wish.path)).body(())?;
    for (name, value) in &wish.fields {
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_bytes(value)?);
    }
    if let Some(upload) = &wish.upload {
        request.headers_mut().insert("content-length", upload.len().into());
    }
    Ok(request)
}

fn fields_of(headers: &http::HeaderMap) -> Fields {
    headers.iter().map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec())).collect()
}

/// Whether the client reads on.
async fn may_go_on(reading: Reading, has: usize, paused_at: &mut usize) -> bool {
    match reading {
        Reading::Leaves(most) => has < most,
        Reading::Slow(bytes, ms) => {
            if has - *paused_at >= bytes {
                *paused_at = has;
                sleep(Duration::from_millis(ms)).await;
            }
            true
        }
        Reading::All | Reading::LeavesAt(_) => true,
    }
}

struct One {
    stream: TcpStream,
    read: Vec<u8>,
    reading: Reading,
    paused_at: usize,
}

impl One {
    async fn more(&mut self) -> Result<bool, Failed> {
        self.read.reserve(WINDOW as usize);
        Ok(self.stream.read_buf(&mut self.read).await? > 0)
    }

    async fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>, Failed> {
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|w| w == mark) {
                return Ok(self.read.drain(..at + mark.len()).collect());
            }
            if !self.more().await? {
                return Err("it ends early".into());
            }
        }
    }

    /// So many bytes; `false` if the client goes before.
    async fn take(&mut self, mut left: usize, to: &mut Vec<u8>) -> Result<bool, Failed> {
        while left > 0 {
            if self.read.is_empty() && !self.more().await? {
                return Err("it ends early".into());
            }
            let taken = self.read.len().min(left);
            to.extend(self.read.drain(..taken));
            left -= taken;
            if !may_go_on(self.reading, to.len(), &mut self.paused_at).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads until the other side closes.
    async fn rest(&mut self, to: &mut Vec<u8>) -> Result<bool, Failed> {
        loop {
            to.append(&mut self.read);
            if !may_go_on(self.reading, to.len(), &mut self.paused_at).await {
                return Ok(false);
            }
            if !self.more().await? {
                return Ok(true);
            }
        }
    }
}
