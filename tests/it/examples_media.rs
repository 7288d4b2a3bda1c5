//! The examples that take text, pictures and recordings, each deployed as its function.toml says: samples with their
//! expected answers, and what a stranger may send instead.

use fnctl_tests::{Reply, TestPlatform, file};
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Posts a body of a media type, and waits until the instance is free again.
async fn post(platform: &TestPlatform, name: &str, kind: &str, body: Vec<u8>) -> Reply {
    let path = format!("/fn/{name}");
    let headers = [("content-type", kind)];
    let reply = platform
        .client
        .send(Method::POST, &path, &headers, body)
        .await;
    platform.settle().await;
    reply
}

/// The platform's answer to a body of so many bytes, of which none is sent: only its length is told. (A client that goes
/// on writing may find the connection closed before it reads the answer.)
async fn tell_length(platform: &TestPlatform, name: &str, length: usize) -> String {
    let mut stream = TcpStream::connect(platform.platform().address())
        .await
        .unwrap();
    let head = format!(
        "POST /fn/{name} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Refused by the function with this status, in words that contain `says`.
#[track_caller]
fn assert_refused(reply: &Reply, status: u16, says: &str) {
    assert_eq!(reply.status.as_u16(), status, "{}", reply.text());
    let error = reply.json()["error"].to_string();
    assert!(error.contains(says), "{error}");
}

#[track_caller]
fn assert_verdict(verdict: &Value, label: &str, score: f64) {
    assert_eq!(verdict["label"], label, "{verdict}");
    let difference = verdict["score"].as_f64().unwrap() - score;
    assert!(difference.abs() < 1e-4, "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentiment() {
    let platform = TestPlatform::start().await;
    platform.deploy_folder("examples/sentiment").await;
    let send = |body: Vec<u8>| post(&platform, "sentiment", "application/json", body);
    let reply = send(file("examples/sentiment/request.json")).await.ok();
    assert_eq!(reply.start(), "cold");
    // What scikit-learn's own classifier says, from which the model was made.
    assert_verdict(&reply.json(), "positive", 0.883_407_6);
    let reply = send(file("examples/sentiment/batch.json")).await.ok();
    assert_eq!(reply.start(), "warm");
    let results = &reply.json()["results"];
    assert_verdict(&results[0], "positive", 0.883_407_6);
    assert_verdict(&results[1], "negative", 1.0 - 0.097_390_7);
    assert_verdict(&results[2], "positive", 0.995_886_4);
    assert_verdict(&results[3], "negative", 1.0 - 0.150_691_2);

    let send = |body: String| send(body.into_bytes());
    let nothing = json!({ "text": "12345 \u{597d}" }).to_string();
    assert_verdict(&send(nothing).await.ok().json(), "unknown", 0.0);
    assert_refused(&send(String::new()).await, 400, "JSON");
    assert_refused(&send("hello".to_owned()).await, 400, "JSON");
    assert_refused(&send("{}".to_owned()).await, 400, "either");
    let many = json!({ "texts": vec!["a"; 65] }).to_string();
    assert_refused(&send(many).await, 413, "several requests");
    let answer = tell_length(&platform, "sentiment", (256 << 10) + 1).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_orientation() {
    let platform = TestPlatform::start().await;
    platform.deploy_folder("examples/image-orientation").await;
    let upright = file("examples/image-orientation/samples/ocr_line.png");
    let turned = file("examples/image-orientation/samples/ocr_line_180.png");
    for (start, sample, degrees) in [
        ("cold", &upright, 0),
        ("warm", &turned, 180),
        ("warm", &upright, 0),
    ] {
        let reply = post(&platform, "image-orientation", "image/png", sample.clone())
            .await
            .ok();
        assert_eq!(reply.start(), start);
        let answer = reply.json();
        assert_eq!(answer["degrees"], degrees, "{answer}");
        assert!(answer["score"].as_f64().unwrap() > 0.9999, "{answer}");
        assert_eq!(answer["rotate"], degrees == 180, "{answer}");
    }

    let send = |kind: &'static str, body: &[u8]| {
        let body = body.to_vec();
        async { post(&platform, "image-orientation", kind, body).await }
    };
    assert_refused(&send("image/png", b"").await, 400, "send image/png");
    assert_refused(&send("image/jpeg", &upright).await, 415, "send image/png");
    let jpeg = b"\xff\xd8\xff\xe0\0\x10JFIF";
    assert_refused(&send("image/png", jpeg).await, 415, "a JPEG");
    let half = &upright[..upright.len() / 2];
    assert_refused(&send("image/png", half).await, 422, "too early");
    assert_refused(
        &send("image/png", &claim(50_000, 50_000)).await,
        413,
        "50000 x 50000",
    );
    let answer = tell_length(&platform, "image-orientation", (8 << 20) + 1).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("limit of 8MiB"), "{answer}");
    // None of it harmed the instance.
    let reply = send("image/png", &turned).await.ok();
    assert_eq!(
        (reply.start(), &reply.json()["degrees"]),
        ("warm", &json!(180))
    );
}

/// A PNG that claims this size: its signature, header and end, with no pixels.
fn claim(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[8, 2, 0, 0, 0],
    ]
    .concat();
    for (name, body) in [(b"IHDR", &header[..]), (b"IEND", &[])] {
        let length = u32::try_from(body.len()).unwrap();
        let chunk = [&name[..], body].concat();
        file.extend(length.to_be_bytes());
        // CRC-32 as PNG has it (PNG specification, annex D).
        let crc = chunk.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        });
        file.extend(chunk);
        file.extend((!crc).to_be_bytes());
    }
    file
}

/// Where the samples of `speech16k.wav` begin.
const WAV_HEADER: usize = 44;

/// A WAV file with the header of `speech16k.wav` and these bytes of samples.
fn recording(sample: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut file = sample[..WAV_HEADER].to_vec();
    parts.iter().for_each(|part| file.extend(*part));
    let length = u32::try_from(file.len() - WAV_HEADER).unwrap();
    file[40..44].copy_from_slice(&length.to_le_bytes());
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn speech() {
    let platform = TestPlatform::start().await;
    platform.deploy_folder("examples/speech").await;
    let sample = file("examples/speech/samples/speech16k.wav");
    let send = |kind: &'static str, body: Vec<u8>| post(&platform, "speech", kind, body);
    // What Silero's own get_speech_timestamps gives with Python's onnxruntime, in samples / 16000.
    let wanted = json!({ "duration": 4.175, "segments": [{ "start": 0.514, "end": 3.518 }] });
    let reply = send("audio/wav", sample.clone()).await.ok();
    assert_eq!((reply.start(), reply.json()), ("cold", wanted.clone()));

    // The same twice with two seconds of silence between.
    let spoken = &sample[WAV_HEADER..];
    let silence = vec![0; 64_000];
    let twice = recording(&sample, &[spoken, &silence, spoken]);
    let segments = json!([{ "start": 0.514, "end": 3.518 }, { "start": 6.69, "end": 9.694 }]);
    let reply = send("audio/x-wav", twice).await.ok();
    assert_eq!(
        (reply.start(), &reply.json()["segments"]),
        ("warm", &segments)
    );
    // Cut off in the middle of the speech, so that the model's state is as far from fresh as it gets; then nothing but
    // silence, then the sample again: no request hears the one before.
    let cut = recording(&sample, &[&spoken[..64_000]]);
    let reply = send("audio/wav", cut).await.ok().json();
    assert_eq!(reply["segments"], json!([{ "start": 0.514, "end": 2.0 }]));
    let silent = send("", recording(&sample, &[&silence])).await.ok();
    assert_eq!(
        (silent.start(), &silent.json()["segments"]),
        ("warm", &json!([]))
    );
    let again = send("application/octet-stream", sample.clone()).await.ok();
    assert_eq!((again.start(), again.json()), ("warm", wanted));

    assert_refused(&send("audio/wav", Vec::new()).await, 400, "send audio/wav");
    assert_refused(&send("audio/mpeg", sample.clone()).await, 415, "audio/mpeg");
    assert_refused(&send("audio/wav", b"ID3".to_vec()).await, 415, "ffmpeg");
    let mut stereo = sample.clone();
    stereo[22] = 2;
    assert_refused(&send("audio/wav", stereo).await, 415, "2 channel(s)");
    let half = sample[..sample.len() / 2].to_vec();
    assert_refused(&send("audio/wav", half).await, 422, "send all of it");
    let empty = recording(&sample, &[]);
    assert_refused(&send("audio/wav", empty).await, 422, "no samples");
    let answer = tell_length(&platform, "speech", (16 << 20) + 1).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("limit of 16MiB"), "{answer}");
}
