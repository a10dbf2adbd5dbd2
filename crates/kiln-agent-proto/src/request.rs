//! Requests of any size on frames of a bounded size.

use futures_util::io::{AsyncRead, AsyncWrite};
use prost::Message as _;

use crate::frame::{FrameError, FrameReader, FrameWriter};
use crate::limits::{CHUNK, MAX_REQUEST};
use crate::message::{Request, RequestPart, request::Kind};

/// Sends a request, in parts when it is long.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_REQUEST`], before anything is sent; the transport's.
pub async fn send<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    request: &Request,
) -> Result<(), FrameError> {
    let len = request.encoded_len();
    if len > MAX_REQUEST {
        return Err(FrameError::TooLong(len));
    }
    if len <= CHUNK {
        return writer.send(request).await;
    }
    let bytes = request.encode_to_vec();
    let count = bytes.len().div_ceil(CHUNK);
    for (index, data) in bytes.chunks(CHUNK).enumerate() {
        let part = RequestPart {
            data: data.to_vec(),
            last: index + 1 == count,
        };
        writer.send(&Request::of(Kind::Part(part))).await?;
    }
    Ok(())
}

/// Receives a request, whole; `None` when the stream ends without one.
///
/// # Errors
/// Every [`FrameError`]; parts that together exceed [`MAX_REQUEST`] or end too early.
pub async fn receive<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
) -> Result<Option<Request>, FrameError> {
    let mut whole = Vec::new();
    loop {
        let Some(request) = reader.next::<Request>().await? else {
            return if whole.is_empty() {
                Ok(None)
            } else {
                Err(FrameError::Truncated)
            };
        };
        let Some(Kind::Part(part)) = request.kind else {
            return Ok(Some(request));
        };
        if whole.len() + part.data.len() > MAX_REQUEST {
            return Err(FrameError::TooLong(whole.len() + part.data.len()));
        }
        whole.extend_from_slice(&part.data);
        if part.last {
            return Ok(Some(Request::decode(whole.as_slice())?));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Exec;
    use futures_util::io::Cursor;

    fn exec(arg: usize) -> Request {
        Request::of(Kind::Exec(Exec {
            argv: vec![b"echo".to_vec(), vec![b'x'; arg]],
            ..Exec::default()
        }))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return value;
            }
        }
    }

    fn round_trip(request: &Request) -> Result<Option<Request>, FrameError> {
        let mut wire = Vec::new();
        block_on(send(&mut FrameWriter::new(&mut wire), request))?;
        block_on(receive(&mut FrameReader::new(Cursor::new(wire))))
    }

    #[test]
    fn short_and_long_requests_arrive_whole() {
        for arg in [0, CHUNK, CHUNK * 3 + 17, MAX_REQUEST - 100] {
            let request = exec(arg);
            assert_eq!(round_trip(&request).unwrap(), Some(request));
        }
    }

    #[test]
    fn a_request_beyond_the_limit_is_not_sent() {
        let mut wire = Vec::new();
        let sent = block_on(send(&mut FrameWriter::new(&mut wire), &exec(MAX_REQUEST)));
        assert!(matches!(sent, Err(FrameError::TooLong(_))));
        assert!(wire.is_empty());
    }

    #[test]
    fn parts_without_end_are_cut_off() {
        let part = Request::of(Kind::Part(RequestPart {
            data: vec![0; CHUNK],
            last: false,
        }));
        let mut wire = Vec::new();
        for _ in 0..=MAX_REQUEST / CHUNK {
            crate::frame::encode(&part, &mut wire).unwrap();
        }
        let received = block_on(receive(&mut FrameReader::new(Cursor::new(wire))));
        assert!(matches!(received, Err(FrameError::TooLong(_))));
    }

    #[test]
    fn a_stream_that_ends_between_parts_is_truncated() {
        let mut wire = Vec::new();
        block_on(send(&mut FrameWriter::new(&mut wire), &exec(CHUNK * 2))).unwrap();
        wire.truncate(CHUNK + 20);
        assert!(block_on(receive(&mut FrameReader::new(Cursor::new(wire)))).is_err());
    }
}
