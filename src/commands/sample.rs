//! The small built-in site that `tidegate dev` serves without --origin: an ordinary origin on a free port of loopback.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use std::net::SocketAddr;
use tidegate_node::lifecycle::Stopping;
use tidegate_node::{NodeError, listen, serve};

/// Path, type, tag for this page's parts, content.
const PAGES: [(&str, &str, &str, &[u8]); 4] = [
    ("/", "text/html; charset=utf-8", "page", include_bytes!("../sample/index.html")),
    ("/style.css", "text/css; charset=utf-8", "asset", include_bytes!("../sample/style.css")),
    ("/explain.js", "text/javascript; charset=utf-8", "asset", include_bytes!("../sample/explain.js")),
    ("/hello.txt", "text/plain; charset=utf-8", "page", b"Hello from the origin.\n"),
];

/// Starts it; returns where it listens.
pub fn start(stopping: Stopping) -> Result<SocketAddr, NodeError> {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = listen::bind(address)?;
    let bound = listener.local_addr().map_err(|error| NodeError::Listen { address, error, hint: "" })?;
    tokio::spawn(serve::serve(
        listener,
        serve::Transport::Clear,
        |request: Request<Incoming>, _peer| std::future::ready(answer(&request)),
        stopping,
    ));
    Ok(bound)
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let page = PAGES.iter().find(|p| p.0 == request.uri().path());
    let (status, kind, tag, body) = match page {
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "error", &b"only GET\n"[..])
        }
        Some((_, kind, tag, body)) => (StatusCode::OK, *kind, *tag, *body),
        None => (StatusCode::NOT_FOUND, "text/plain", "error", &b"The sample site has no such page.\n"[..]),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert("surrogate-key", HeaderValue::from_static(tag));
    headers
        .insert(header::CACHE_CONTROL, HeaderValue::from_static(if status == StatusCode::OK { "public, max-age=300" } else { "no-store" }));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}-{}\"", env!("CARGO_PKG_VERSION"), body.len())) {
        headers.insert(header::ETAG, etag);
    }
    response
}
