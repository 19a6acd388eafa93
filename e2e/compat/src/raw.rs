//! A connection of raw frames: requests and responses as they are on the wire, the same for either broker.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use gregor_messages::Request;
use gregor_wire::{Message, Reader, RequestHeader, ResponseHeader, Struct, Writer};

const DEADLINE: Duration = Duration::from_mins(1);
const FRAME_BYTES_MAX: usize = 512 << 20;

/// A connection to a broker.
pub struct Connection {
    stream: TcpStream,
    next_correlation_id: i32,
}

impl Connection {
    /// Connects.
    pub fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, next_correlation_id: 1 })
    }

    /// One request and its response.
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response> {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id += 1;
        let header = RequestHeader {
            request_api_key: R::KEY.code(),
            request_api_version: version,
            correlation_id,
            client_id: Some("compat".into()),
            ..RequestHeader::default()
        };
        let mut writer = Writer::new();
        header.write(&mut writer, R::KEY.request_header_version(version))?;
        request.encode(&mut writer, version)?;
        let frame = writer.into_bytes();
        self.stream.write_all(&(frame.len() as u32).to_be_bytes())?;
        self.stream.write_all(&frame)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).with_context(|| format!("waiting for {:?}", R::KEY))?;
        let length = u32::from_be_bytes(length) as usize;
        ensure!(length <= FRAME_BYTES_MAX, "a response of {length} bytes");
        let mut frame = vec![0; length];
        self.stream.read_exact(&mut frame)?;
        let mut reader = Reader::new(Bytes::from(frame));
        let header = ResponseHeader::read(&mut reader, R::KEY.response_header_version(version))?;
        ensure!(header.correlation_id == correlation_id, "an answer to another request");
        Ok(R::Response::decode(&mut reader, version)?)
    }
}
