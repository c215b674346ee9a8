//! PROXY protocol v2 headers, from whoever may send them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut rest = data;
    let read = runtime.block_on(tidegate_edge::proxy_protocol::read(&mut rest));
    if read.is_ok() {
        let length = 16 + usize::from(u16::from_be_bytes([data[14], data[15]]));
        assert_eq!(data.len() - rest.len(), length, "exactly the header is taken off");
    }
});
