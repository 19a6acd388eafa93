//! Walks over the batches of a segment's file: headers to find an offset, checksums to recover.

use std::io;

use gregor_wire::batch::{BatchChecksum, BatchError, BatchHeader, HEADER_BYTES_V2};

use crate::disk::SharedFile;

/// How much is read at once to look for a batch: an index interval and a half.
pub(crate) const SEEK_BUFFER_BYTES: usize = 6 * 1024;
/// How much is read at once to go over a whole file.
pub(crate) const SWEEP_BUFFER_BYTES: usize = 256 * 1024;

/// Reads batch after batch; memory stays at its buffer, whatever a batch's size.
#[derive(Debug)]
pub(crate) struct BatchScanner {
    file: SharedFile,
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    buffer_len: usize,
}

/// What comes next in the file.
#[derive(Debug)]
pub(crate) enum Scan {
    /// A batch that is there to its end.
    Batch { position: u64, header: BatchHeader },
    /// Nothing more.
    End,
    /// Something that is not a whole batch.
    Damage(BatchError),
}

impl BatchScanner {
    pub(crate) fn new(file: SharedFile, position: u64, end: u64, buffer_bytes: usize) -> Self {
        let buffer_bytes = buffer_bytes.min((end.saturating_sub(position)) as usize).max(HEADER_BYTES_V2);
        Self { file, position, end, buffer: vec![0; buffer_bytes], buffer_at: 0, buffer_len: 0 }
    }

    /// The file that it walks over.
    pub(crate) const fn file(&self) -> &SharedFile {
        &self.file
    }

    /// Where the next batch starts.
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// The next batch's header; its checksum is not looked at.
    pub(crate) fn next(&mut self) -> io::Result<Scan> {
        let position = self.position;
        let remaining = self.end.saturating_sub(position);
        if remaining == 0 {
            return Ok(Scan::End);
        }
        let bytes = self.peek(position, remaining.min(HEADER_BYTES_V2 as u64) as usize)?;
        let header = match BatchHeader::parse(bytes) {
            Ok(header) => header,
            Err(error) => return Ok(Scan::Damage(error)),
        };
        let size = u64::from(header.size);
        if size > remaining {
            let (needed, available) = (size as usize, remaining as usize);
            return Ok(Scan::Damage(BatchError::Truncated { needed, available }));
        }
        self.position += size;
        Ok(Scan::Batch { position, header })
    }

    /// The next batch, after its bytes are found to be those of its checksum.
    pub(crate) fn next_checked(&mut self) -> io::Result<Scan> {
        let scan = self.next()?;
        let Scan::Batch { position, header } = scan else { return Ok(scan) };
        let mut checksum = BatchChecksum::new(header.magic);
        let mut at = position + header.checksummed_from() as u64;
        while at < self.position {
            let wanted = (self.position - at).min(self.buffer.len() as u64) as usize;
            let bytes = self.peek(at, wanted)?;
            checksum.update(bytes);
            at += wanted as u64;
        }
        let computed = checksum.finish();
        if computed != header.crc {
            self.position = position;
            let error = BatchError::Corrupt { base_offset: header.base_offset.0, stored: header.crc, computed };
            return Ok(Scan::Damage(error));
        }
        Ok(Scan::Batch { position, header })
    }

    /// Bytes of the file, from the buffer or read into it; at most a buffer's length.
    fn peek(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        let buffered = self.buffer_at..self.buffer_at + self.buffer_len as u64;
        if !(buffered.start <= position && position + len as u64 <= buffered.end) {
            let wanted = (self.end - position).min(self.buffer.len() as u64) as usize;
            self.buffer_len = 0;
            let mut filled = 0;
            while filled < wanted {
                match self.file.read_at(&mut self.buffer[filled..wanted], position + filled as u64)? {
                    0 => break,
                    read => filled += read,
                }
            }
            if filled < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (self.buffer_at, self.buffer_len) = (position, filled);
        }
        let start = (position - self.buffer_at) as usize;
        Ok(&self.buffer[start..start + len])
    }
}
