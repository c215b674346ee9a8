//! Why a fetch brought no response: the words for clients, operators and other nodes, and who is to blame.

macro_rules! fetch_errors {
    ($($name:ident $token:literal $text:literal)*) => {
        /// Why there is no response, in words for clients and `tidegate explain`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum FetchError {
            $(#[error($text)] $name,)*
        }

        impl FetchError {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word for Cache-Status, logs and between nodes.
            #[must_use]
            pub fn token(self) -> &'static str {
                match self {
                    $(Self::$name => $token,)*
                }
            }
        }
    };
}

fetch_errors! {
    Refused "refused" "the origin refused the connection"
    Connect "connect" "no address of the origin can be reached"
    NoRoom "no-room" "this node has no file descriptors, ports or memory left for a connection"
    ConnectTimeout "connect-timeout" "the origin did not accept a connection in time (origin.connect_timeout)"
    Resolve "resolve" "the origin's name does not exist, or has no addresses"
    NameServer "name-server" "no name server answered for the origin's name"
    TlsTimeout "tls-timeout" "the TLS handshake with the origin took too long (origin.connect_timeout)"
    TlsExpired "tls-expired" "the origin's certificate has expired, or is not valid yet"
    TlsName "tls-name" "the origin's certificate is for another name (origin.tls.server_name says which one to expect)"
    TlsUnknownAuthority "tls-unknown-authority" "the origin's certificate is from an authority that is not trusted (origin.tls.ca names another one)"
    NotTls "not-tls" "the origin does not speak TLS on this port, and its URL begins with https"
    Tls "tls" "the TLS handshake with the origin failed"
    Timeout "timeout" "the origin did not begin its answer in time (origin.first_byte_timeout)"
    Deadline "deadline" "the time for the whole request was over before the origin answered (origin.total_timeout)"
    Stalled "stalled" "the origin stopped taking the request's body (origin.idle_timeout)"
    Idle "idle-timeout" "the origin stopped in the middle of its answer (origin.idle_timeout)"
    NoStream "no-stream" "all HTTP/2 connections to the origin have as many requests as it allows"
    Reset "reset" "the origin closed the connection before it answered"
    Unprocessed "unprocessed" "the origin refused the request before it looked at it (REFUSED_STREAM or GOAWAY)"
    NeedsHttp1 "needs-http1" "the origin takes this request over HTTP/1.1 alone (HTTP_1_1_REQUIRED)"
    Malformed "malformed" "the origin's answer is not valid HTTP"
    HeadTooLarge "head-too-large" "the head of the origin's answer has more than 256 fields or 256 KiB"
    Framing "framing" "the length of the origin's answer is not a number, or is given in two ways (Content-Length, Transfer-Encoding)"
    Chunk "chunk" "the origin's answer has an invalid chunk"
    Switched "switched" "the origin switched to another protocol, or sent an interim status as its final one, without being asked to"
    Unasked "unasked" "the origin answered with a part (206) or \"not modified\" (304), which the request did not ask for"
    Interim "interim" "the origin sent more than 10,000 interim answers (1xx), or more than 1.2 MB of them"
    Changed "changed" "the origin has a newer version of what it began to send"
    PartRefused "part-refused" "the origin refused a further part of what it began to send (a redirect, or an error such as 403 or 429)"
    Broken "broken" "the connection ended in the middle of the answer"
    Abandoned "abandoned" "the fetch was abandoned: its clients have left, and too much is missing to finish it for later ones"
    Down "down" "every origin server is down"
    Private "private" "the origin's address is private, and this site may not reach such addresses (origin.allow_private)"
    ServerError "server-error" "the origin answered with an error"
    Client "client" "the client's request broke off, or its body is malformed"
    TooLarge "too-large" "the body of the request is larger than this node allows"
    Shield "shield" "no shield of this region can be reached"
}

impl FetchError {
    #[must_use]
    pub fn of_token(token: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|e| e.token() == token)
    }

    /// The status of the answer to the client.
    #[must_use]
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::Timeout | Self::ConnectTimeout | Self::TlsTimeout | Self::Deadline | Self::Stalled | Self::Idle | Self::NameServer => {
                http::StatusCode::GATEWAY_TIMEOUT
            }
            Self::Down | Self::NoStream | Self::NoRoom => http::StatusCode::SERVICE_UNAVAILABLE,
            Self::Client => http::StatusCode::BAD_REQUEST,
            Self::TooLarge => http::StatusCode::PAYLOAD_TOO_LARGE,
            _ => http::StatusCode::BAD_GATEWAY,
        }
    }

    /// Whether the same server may do better a moment later.
    #[must_use]
    pub fn is_worth_a_retry(self) -> bool {
        let may_pass = matches!(
            self,
            Self::Refused
                | Self::Connect
                | Self::ConnectTimeout
                | Self::TlsTimeout
                | Self::Timeout
                | Self::Reset
                | Self::Broken
                | Self::Down
        );
        may_pass || self.is_before_processing()
    }

    /// Whether the server says that it did nothing with the request, so that any may be sent again (RFC 9113 section 8.7).
    #[must_use]
    pub fn is_before_processing(self) -> bool {
        matches!(self, Self::Unprocessed | Self::NeedsHttp1)
    }

    /// Whether the origin cannot be reached or does not answer, so that a stale response may be served.
    #[must_use]
    pub fn is_unreachable(self) -> bool {
        !matches!(
            self,
            Self::ServerError | Self::Changed | Self::PartRefused | Self::Abandoned | Self::Client | Self::TooLarge | Self::Private
        )
    }

    /// Whether another request may fare better, because its fields or its body differ. Else no connection was made for it.
    #[must_use]
    pub fn depends_on_the_request(self) -> bool {
        !matches!(
            self,
            Self::Refused
                | Self::Connect
                | Self::NoRoom
                | Self::ConnectTimeout
                | Self::Resolve
                | Self::NameServer
                | Self::TlsTimeout
                | Self::TlsExpired
                | Self::TlsName
                | Self::TlsUnknownAuthority
                | Self::NotTls
                | Self::Tls
                | Self::Down
                | Self::Private
                | Self::NoStream
                | Self::Shield
        )
    }

    /// Whether it speaks against the server as such, and not against this request or this answer.
    #[must_use]
    pub fn is_of_the_server(self) -> bool {
        let is_of_the_request = matches!(
            self,
            Self::Malformed
                | Self::HeadTooLarge
                | Self::Framing
                | Self::Switched
                | Self::Unasked
                | Self::Chunk
                | Self::NoStream
                | Self::NoRoom
                | Self::NameServer
                | Self::PartRefused
                | Self::Interim
                | Self::Client
                | Self::TooLarge
                | Self::Private
                | Self::Abandoned
        );
        !is_of_the_request && !self.is_before_processing()
    }
}

/// A fetch that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FetchFailed {
    /// The error of the last attempt.
    pub error: FetchError,
    /// Requests to origin servers, over both tiers.
    pub attempts: u32,
    /// The line of a malformed head, counted from the status line as 1.
    pub line: Option<u32>,
}

impl From<FetchError> for FetchFailed {
    fn from(error: FetchError) -> Self {
        Self { error, attempts: 0, line: None }
    }
}

impl std::fmt::Display for FetchFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.error)?;
        match self.line {
            Some(1) => write!(f, ": its status line")?,
            Some(n) => write!(f, ": line {n} of its head")?,
            None => {}
        }
        match self.attempts {
            1 if matches!(self.error, FetchError::Timeout | FetchError::Deadline) => write!(f, ", after 1 attempt"),
            0 | 1 => Ok(()),
            n => write!(f, " (the last of {n} attempts)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_explained_to_operators() {
        let text = include_str!("../../../docs/answers.md");
        for error in FetchError::ALL {
            let row = format!("| `{}` | {} |", error.token(), error.status().as_u16());
            assert!(text.contains(&row), "{row}");
        }
        for reason in tidegate_cache::storable::NotStorable::ALL {
            assert!(text.contains(&format!("| `{}` |", reason.detail())), "{}", reason.detail());
        }
    }

    #[test]
    fn each_error_has_a_word_of_its_own() {
        for error in FetchError::ALL {
            assert_eq!(FetchError::of_token(error.token()), Some(*error));
        }
    }
}
