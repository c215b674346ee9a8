//! The streams that go one way (RFC 9114 section 6.2): a client's settings, and its QPACK streams, which have nothing to say where
//! there is no dynamic table.

use crate::code::{Broken, Code};
use crate::frame::{Frame, Frames, Kind};
use crate::varint;
use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Bytes of one frame on the control stream.
const MOST: usize = 4 << 10;

/// Which streams of a kind that may come once have come.
#[derive(Default)]
struct Seen(Cell<u8>);

impl Seen {
    fn first(&self, bit: u8) -> Result<(), Broken> {
        let before = self.0.replace(self.0.get() | bit);
        if before & bit != 0 {
            return Err(Broken::new(Code::STREAM_CREATION_ERROR, "there are two streams of a kind that may be there once"));
        }
        Ok(())
    }
}

/// Reads a client's one-way streams for as long as its connection lives; ends that where they break the protocol.
pub async fn read(connection: Connection) {
    let seen = Rc::new(Seen::default());
    while let Ok(stream) = connection.accept_uni().await {
        let (connection, seen) = (connection.clone(), Rc::clone(&seen));
        tokio::task::spawn_local(async move {
            let read = tokio::select! {
                read = read_stream(stream, &seen) => read,
                _ = connection.closed() => return,
            };
            if let Err(broken) = read {
                tracing::debug!(why = broken.why, "a client broke HTTP/3");
                connection.close(broken.code.into(), broken.why.as_bytes());
            }
        });
    }
}

async fn read_stream(mut stream: RecvStream, seen: &Seen) -> Result<(), Broken> {
    // A stream that ends before it says what it is means nothing.
    let mut held = BytesMut::new();
    let (kind, mut rest) = loop {
        let Ok(Some(chunk)) = stream.read_chunk(MOST, true).await else { return Ok(()) };
        held.extend_from_slice(&chunk.bytes);
        if let Some((kind, length)) = varint::read(&held) {
            break (kind, held.split_off(length).freeze());
        }
    };
    match kind {
        0x0 => {
            seen.first(1)?;
            control(&mut stream, rest).await
        }
        0x1 => Err(Broken::new(Code::STREAM_CREATION_ERROR, "a client pushes nothing")),
        0x2 => {
            seen.first(2)?;
            loop {
                // All that an encoder may say is that the table has no room.
                if rest.iter().any(|b| *b != 0x20) {
                    return Err(Broken::new(Code::ENCODER_STREAM_ERROR, "there is no dynamic table"));
                }
                rest = more(&mut stream).await?;
            }
        }
        0x3 => {
            seen.first(4)?;
            loop {
                // What a decoder says is of sections that refer to the table: there are none.
                more(&mut stream).await?;
            }
        }
        _ => {
            // Reserved, or of an extension that is not spoken here.
            let _ = stream.stop(Code::STREAM_CREATION_ERROR.into());
            Ok(())
        }
    }
}

/// More of a stream that may not end.
async fn more(stream: &mut RecvStream) -> Result<Bytes, Broken> {
    match stream.read_chunk(MOST, true).await {
        Ok(Some(chunk)) => Ok(chunk.bytes),
        Ok(None) | Err(_) => Err(Broken::new(Code::CLOSED_CRITICAL_STREAM, "a stream that has to stay was closed")),
    }
}

async fn control(stream: &mut RecvStream, mut came: Bytes) -> Result<(), Broken> {
    let (mut frames, mut settled) = (Frames::new(MOST), false);
    loop {
        while let Some(frame) = frames.next(&mut came)? {
            judge(&frame, settled)?;
            settled = true;
        }
        came = more(stream).await?;
    }
}

fn judge(frame: &Frame, settled: bool) -> Result<(), Broken> {
    match frame {
        Frame::Whole(Kind::Settings, payload) if !settled => settings(payload),
        Frame::TooLong(_) => Err(Broken::new(Code::EXCESSIVE_LOAD, "a frame of the control stream is too long")),
        _ if !settled => Err(Broken::new(Code::MISSING_SETTINGS, "the control stream does not begin with SETTINGS")),
        Frame::Whole(Kind::Goaway | Kind::MaxPushId, payload) => match varint::read(payload) {
            Some((_, length)) if length == payload.len() => Ok(()),
            _ => Err(Broken::new(Code::FRAME_ERROR, "a frame is not one number")),
        },
        Frame::Whole(Kind::CancelPush, _) => Err(Broken::new(Code::ID_ERROR, "nothing was pushed")),
        _ => Err(Broken::new(Code::FRAME_UNEXPECTED, "this frame does not belong on the control stream")),
    }
}

fn settings(mut payload: &[u8]) -> Result<(), Broken> {
    let mut seen = BTreeSet::new();
    while !payload.is_empty() {
        let pair = varint::read(payload).and_then(|(name, a)| varint::read(payload.get(a..)?).map(|(_, b)| (name, a + b)));
        let Some((name, length)) = pair else { return Err(Broken::new(Code::FRAME_ERROR, "SETTINGS are no pairs of numbers")) };
        if matches!(name, 0x2..=0x5) || !seen.insert(name) {
            return Err(Broken::new(Code::SETTINGS_ERROR, "a setting is HTTP/2's, or is there twice"));
        }
        payload = payload.get(length..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_stream_begins_with_settings_once() {
        let whole = |kind, payload: &'static [u8]| Frame::Whole(kind, Bytes::from_static(payload));
        let code = |frame: Frame, settled| judge(&frame, settled).err().map(|b| b.code);
        assert_eq!(code(whole(Kind::Settings, b"\x06\x40\x40\x21\x00"), false), None);
        assert_eq!(code(whole(Kind::Settings, b""), true), Some(Code::FRAME_UNEXPECTED));
        assert_eq!(code(whole(Kind::Goaway, b"\x00"), false), Some(Code::MISSING_SETTINGS));
        assert_eq!(code(whole(Kind::Settings, b"\x06"), false), Some(Code::FRAME_ERROR));
        assert_eq!(code(whole(Kind::Settings, b"\x02\x00"), false), Some(Code::SETTINGS_ERROR));
        assert_eq!(code(whole(Kind::Settings, b"\x06\x00\x06\x01"), false), Some(Code::SETTINGS_ERROR));
        assert_eq!(code(whole(Kind::Goaway, b"\x00\x00"), true), Some(Code::FRAME_ERROR));
        assert_eq!(code(whole(Kind::MaxPushId, b"\x08"), true), None);
        assert_eq!(code(whole(Kind::CancelPush, b"\x00"), true), Some(Code::ID_ERROR));
        assert_eq!(code(Frame::Data(Bytes::new()), true), Some(Code::FRAME_UNEXPECTED));
    }
}
