//! Whatever comes out of a socket, on either side: the parsers answer, and what they understand
//! they write down again as it was.

#![no_main]

use bytes::Bytes;
use kiln_api::{
    ErrorBody, ExecRequest, RunRequest, Sandbox,
    stream::{ClientControl, ServerControl, decode, encode},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok((channel, bytes)) = decode(Bytes::copy_from_slice(data)) {
        assert_eq!(encode(channel, &bytes).expect("it fitted").as_ref(), data);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(control) = ClientControl::parse(text) {
        let again = serde_json::to_string(&control).expect("plain data");
        assert_eq!(ClientControl::parse(&again).expect("our own"), control);
    }
    if let Ok(control) = ServerControl::parse(text) {
        let again = serde_json::to_string(&control).expect("plain data");
        assert_eq!(ServerControl::parse(&again).expect("our own"), control);
    }
    let _ = serde_json::from_str::<RunRequest>(text);
    let _ = serde_json::from_str::<ExecRequest>(text);
    let _ = serde_json::from_str::<Sandbox>(text);
    let _ = serde_json::from_str::<ErrorBody>(text);
});
