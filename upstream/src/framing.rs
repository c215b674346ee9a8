//! How long a response's body is, by the framing with which it came (RFC 9112 section 6.3). What could be framed in two ways is
//! refused here, once, and the fields that framed it go no further.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use tidegate_control_types::planted::Bug;
use tidegate_gateway::{FetchError, fields};

/// The length of a response's body as its framing gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Bytes; of a response to HEAD, and of a 304, those that its GET would have.
    pub length: Option<u64>,
    /// It ends with its connection: a whole one cannot be told from a torn one.
    pub close_delimited: bool,
}

/// Takes the framing out of a response to `method`. `decoded`: the length that the decoder of its body gives.
///
/// # Errors
/// The fields do not say one thing.
pub fn take<B>(method: &Method, decoded: Option<u64>, response: &mut Response<B>) -> Result<Framing, FetchError> {
    let framing = read(method, response.status(), response.version(), response.headers(), decoded)?;
    fields::strip_framing(response.headers_mut());
    Ok(framing)
}

/// Whether a body may come that no reader of this response waits for: the next response on the connection would begin with it.
pub fn leaves_bytes<B>(method: &Method, response: &Response<B>) -> bool {
    // Some servers send the body that these fields speak of with a response that has none.
    let headers = response.headers();
    let speaks_of_one = || headers.contains_key(TRANSFER_ENCODING) || headers.get_all(CONTENT_LENGTH).iter().any(|l| l != "0");
    let has_none = method == Method::HEAD || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    has_none && speaks_of_one()
}

fn read(method: &Method, status: StatusCode, version: Version, headers: &HeaderMap, decoded: Option<u64>) -> Result<Framing, FetchError> {
    let declared = declared_length(headers);
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        return Ok(Framing { length: None, close_delimited: false });
    }
    if method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        // There is no body, whatever the fields say: they speak of another response.
        return Ok(Framing { length: declared.unwrap_or(None), close_delimited: false });
    }
    let declared = declared?;
    let is_coded = headers.contains_key(TRANSFER_ENCODING);
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = matches!((codings.next(), codings.next()), (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if Bug::TwoFramingsBelieved.is_planted() {
        return Ok(Framing { length: decoded, close_delimited: false });
    }
    if is_coded && (!is_chunked || declared.is_some() || version < Version::HTTP_11) {
        return Err(FetchError::Framing);
    }
    let close_delimited = version < Version::HTTP_2 && !is_coded && declared.is_none() && decoded != Some(0);
    Ok(Framing { length: if close_delimited { None } else { decoded }, close_delimited })
}

/// 2^63 - 1, in bytes.
const LONGEST: u64 = u64::MAX >> 1;

/// The one length that Content-Length gives; members and lines that are the same count as one (RFC 9110 section 8.6).
fn declared_length(headers: &HeaderMap) -> Result<Option<u64>, FetchError> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for member in value.as_bytes().split(|b| *b == b',') {
            let member = member.trim_ascii();
            let digits = std::str::from_utf8(member).ok().filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
            // Lengths above this do not fit the fields between nodes.
            let number = digits.and_then(|t| t.parse().ok()).filter(|n| *n <= LONGEST).ok_or(FetchError::Framing)?;
            if length.replace(number).is_some_and(|before| before != number) {
                return Err(FetchError::Framing);
            }
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(method: &Method, status: u16, version: Version, lines: &[(&'static str, &'static str)], decoded: Option<u64>) -> Option<Framing> {
        let mut headers = HeaderMap::new();
        lines.iter().for_each(|(n, v)| {
            headers.append(*n, HeaderValue::from_static(v));
        });
        read(method, StatusCode::from_u16(status).unwrap(), version, &headers, decoded).ok()
    }

    #[test]
    fn what_can_be_framed_in_two_ways_is_refused() {
        let get = |lines: &[(&'static str, &'static str)], decoded| of(&Method::GET, 200, Version::HTTP_11, lines, decoded);
        let framed = |length| Some(Framing { length, close_delimited: false });
        let (cl, te) = ("content-length", "transfer-encoding");
        assert_eq!(get(&[(cl, "5")], Some(5)), framed(Some(5)));
        assert_eq!(get(&[(cl, "5, 5"), (cl, "5")], Some(5)), framed(Some(5)));
        assert_eq!(get(&[(te, "Chunked")], None), framed(None));
        assert_eq!(get(&[], None), Some(Framing { length: None, close_delimited: true }));
        for lines in [
            &[(cl, "5"), (te, "chunked")][..],
            &[(cl, "5, 6")],
            &[(cl, "5"), (cl, "6")],
            &[(cl, "+5")],
            &[(cl, "5,")],
            &[(cl, "")],
            &[(te, "gzip, chunked")],
            &[(te, "gzip"), (te, "chunked")],
            &[(te, "gzip")],
            &[(te, "identity")],
            &[(te, "chunked, chunked")],
        ] {
            assert_eq!(get(lines, None), None, "{lines:?}");
        }
        assert_eq!(of(&Method::GET, 200, Version::HTTP_10, &[(te, "chunked")], None), None);
        assert_eq!(of(&Method::GET, 200, Version::HTTP_2, &[], None), framed(None));
    }

    #[test]
    fn what_has_no_body_has_the_length_of_another() {
        let of =
            |method, status, lines: &[(&'static str, &'static str)]| of(method, status, Version::HTTP_11, lines, Some(0)).map(|f| f.length);
        let cl = "content-length";
        assert_eq!(of(&Method::HEAD, 200, &[(cl, "7")]), Some(Some(7)));
        assert_eq!(of(&Method::HEAD, 200, &[(cl, "x")]), Some(None));
        assert_eq!(of(&Method::GET, 304, &[(cl, "7")]), Some(Some(7)));
        assert_eq!(of(&Method::GET, 204, &[(cl, "7")]), Some(None));
    }
}
