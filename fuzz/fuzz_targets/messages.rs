//! What nodes send each other and what lies on disk: unreadable bytes are an error, readable ones come out as they went in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_control_state::State;
use tidegate_control_types::wire::{self, Deframer};
use tidegate_control_types::{Command, FromNode, ToNode};

macro_rules! round_trip {
    ($data:expr, $($kind:ty),*) => {
        $(if let Ok(value) = wire::decode::<$kind>($data) {
            let again = wire::decode::<$kind>(&wire::encode(&value)).unwrap();
            assert!(again == value);
        })*
    };
}

fuzz_target!(|data: &[u8]| {
    round_trip!(data, Command, ToNode, FromNode, State);
    let (mut whole, mut split) = (Deframer::default(), Deframer::default());
    whole.push(data);
    let mut pieces = data.chunks(3);
    loop {
        let a = whole.take::<FromNode>();
        let b = loop {
            match split.take::<FromNode>() {
                Ok(None) => match pieces.next() {
                    Some(piece) => split.push(piece),
                    None => break Ok(None),
                },
                other => break other,
            }
        };
        match (a, b) {
            (Ok(Some(a)), Ok(Some(b))) => assert!(a == b),
            (Ok(None), Ok(None)) => return,
            (Err(_), Err(_)) => return,
            (a, b) => panic!("{a:?} in one piece, {b:?} in many"),
        }
    }
});
