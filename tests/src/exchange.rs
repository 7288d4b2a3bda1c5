//! One HTTP/1.1 exchange by hand, for tests that send and read in turns.

use crate::TestPlatform;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A chunked request that is being sent, and the response that is being read meanwhile.
#[derive(Debug)]
pub struct Exchange {
    stream: TcpStream,
    /// Bytes of the response that came and were not taken.
    seen: Vec<u8>,
    in_body: bool,
}

impl Exchange {
    /// Sends the head of a request; its body is chunked.
    pub async fn open(platform: &TestPlatform, line: &str) -> Self {
        let mut stream = TcpStream::connect(platform.platform().address())
            .await
            .unwrap();
        let head = format!("{line}\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        Self {
            stream,
            seen: Vec::new(),
            in_body: false,
        }
    }

    /// Sends a piece of the body.
    pub async fn send(&mut self, piece: &[u8]) {
        let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        self.stream.write_all(&chunk).await.unwrap();
    }

    /// Takes everything up to `end` from the response.
    async fn until(&mut self, end: &[u8]) -> String {
        let waiting = async {
            loop {
                let found = self
                    .seen
                    .windows(end.len())
                    .position(|window| window == end);
                if let Some(at) = found {
                    let taken: Vec<u8> = self.seen.drain(..at + end.len()).collect();
                    return String::from_utf8_lossy(&taken[..at]).into_owned();
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "{}", String::from_utf8_lossy(&self.seen));
                self.seen.extend_from_slice(&buffer[..count]);
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .expect("the response goes on")
    }

    /// The next chunk of the response, which must be one line, without the line's end.
    pub async fn line(&mut self) -> String {
        if !self.in_body {
            let head = self.until(b"\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            self.in_body = true;
        }
        let size = self.until(b"\r\n").await;
        let line = self.until(b"\n").await;
        assert_eq!(usize::from_str_radix(&size, 16), Ok(line.len() + 1));
        self.until(b"\r\n").await;
        line
    }

    /// Ends the request and reads the end of the response.
    pub async fn finish(mut self) {
        self.stream.write_all(b"0\r\n\r\n").await.unwrap();
        assert_eq!(self.until(b"0\r\n\r\n").await, "", "nothing more comes");
    }
}
