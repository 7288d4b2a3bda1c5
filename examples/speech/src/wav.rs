//! The samples of a WAV file: 16 kHz, one channel, 16 bit PCM, and nothing else.
//!
//! A reader of its own because `hound`, the crate for it, refuses what `ffmpeg ... -f wav -` writes into a pipe (a length that
//! was not known when the header was written) and loses its way behind chunks of an odd length. No length in the file is
//! believed: everything is looked up in the bytes at hand, and nothing is allocated.
//! The format is described in "Multimedia Programming Interface and Data Specifications 1.0" (IBM and Microsoft, 1991).

use fnctl_sdk::Error;

/// Samples per second that the model was trained with.
pub const RATE: u32 = 16_000;
/// How to get there, for the caller.
const CONVERT: &str = "ffmpeg -i INPUT -ar 16000 -ac 1 -c:a pcm_s16le OUTPUT.wav";

/// From here on a length is no length: GStreamer writes 0 into a pipe, SoX 0x7ffff000 and more, FFmpeg 0xffffffff.
const UNKNOWN: usize = 0x7fff_0000;

const PCM: u16 = 1;
const EXTENSIBLE: u16 = 0xfffe;

/// The samples of a file, -1 to 1.
#[derive(Debug)]
pub struct Samples<'a> {
    data: &'a [[u8; 2]],
}

impl<'a> Samples<'a> {
    /// Finds them.
    pub fn read(file: &'a [u8]) -> Result<Self, Error> {
        let (Some(b"RIFF"), Some(b"WAVE")) = (file.get(..4), file.get(8..12)) else {
            return Err(Error::unsupported_media_type(format!(
                "the body is no WAV file; make one with: {CONVERT}"
            )));
        };
        let mut rest = file.get(12..).unwrap_or_default();
        let mut is_format_known = false;
        loop {
            let (Some(name), Some(length)) = (rest.get(..4), number(rest, 4)) else {
                return Err(Error::unprocessable(
                    "the WAV file ends before its samples begin; send all of it",
                ));
            };
            let length = length as usize;
            let body = rest.get(8..).unwrap_or_default();
            match name {
                b"fmt " => {
                    check_format(body.get(..length).unwrap_or_default())?;
                    is_format_known = true;
                }
                b"data" if is_format_known => return Self::of(body, length),
                b"data" => {
                    return Err(Error::unprocessable(
                        "the WAV file has samples without saying their format",
                    ));
                }
                _ => {}
            }
            // A chunk of odd length is followed by a byte that nobody counts.
            let next = length.saturating_add(length % 2);
            rest = body.get(next..).unwrap_or_default();
        }
    }

    fn of(body: &'a [u8], length: usize) -> Result<Self, Error> {
        // What is written into a pipe is written before its length is known, so programs put a length there that cannot be.
        let is_stream = length == 0 || length >= UNKNOWN;
        let data = if is_stream {
            body
        } else {
            body.get(..length).ok_or_else(|| {
                Error::unprocessable(format!(
                    "the WAV file says that {length} bytes of samples follow, and {} do; send all of it",
                    body.len()
                ))
            })?
        };
        let (data, _) = data.as_chunks();
        if data.is_empty() {
            return Err(Error::unprocessable("the WAV file has no samples"));
        }
        Ok(Self { data })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Groups of `size` samples; the last one is filled up with silence.
    pub fn frames(&self, size: usize) -> impl Iterator<Item = Vec<f32>> {
        self.data.chunks(size).map(move |chunk| {
            let mut frame: Vec<f32> = chunk
                .iter()
                .map(|sample| f32::from(i16::from_le_bytes(*sample)) / 32_768.0)
                .collect();
            frame.resize(size, 0.0);
            frame
        })
    }
}

/// Four bytes as a number, if they are there.
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn check_format(chunk: &[u8]) -> Result<(), Error> {
    let short = |at: usize| -> Option<u16> {
        let bytes = chunk.get(at..at + 2)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    };
    let fields = (short(0), short(2), number(chunk, 4), short(14));
    let (Some(mut tag), Some(channels), Some(rate), Some(bits)) = fields else {
        return Err(Error::unprocessable(
            "the WAV file's format chunk is cut short",
        ));
    };
    if tag == EXTENSIBLE {
        // The real tag stands at the beginning of the format's GUID.
        tag = short(24).unwrap_or(tag);
    }
    if (tag, channels, rate, bits) == (PCM, 1, RATE, 16) {
        return Ok(());
    }
    let coding = if tag == PCM { "PCM" } else { "no PCM" };
    Err(Error::unsupported_media_type(format!(
        "the WAV file is {coding}, {rate} Hz, {channels} channel(s), {bits} bit; this function takes PCM, {RATE} Hz, 1 channel, 16 bit: {CONVERT}"
    )))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A chunk, with the byte that evens it out.
    fn chunk(name: &[u8; 4], length: u32, body: &[u8]) -> Vec<u8> {
        let mut chunk = [&name[..], &length.to_le_bytes(), body].concat();
        if body.len() % 2 == 1 {
            chunk.push(0);
        }
        chunk
    }

    fn format(tag: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
        let align = channels * bits / 8;
        let bytes = [
            &tag.to_le_bytes()[..],
            &channels.to_le_bytes(),
            &rate.to_le_bytes(),
            &(rate * u32::from(align)).to_le_bytes(),
            &align.to_le_bytes(),
            &bits.to_le_bytes(),
        ]
        .concat();
        chunk(b"fmt ", 16, &bytes)
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        let body = chunks.concat();
        let length = u32::try_from(body.len()).unwrap() + 4;
        [&b"RIFF"[..], &length.to_le_bytes(), b"WAVE", &body].concat()
    }

    /// A WAV file of these samples.
    pub(crate) fn wav(samples: &[i16]) -> Vec<u8> {
        let data: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
        let length = u32::try_from(data.len()).unwrap();
        file(&[format(1, 1, RATE, 16), chunk(b"data", length, &data)])
    }

    fn samples(file: &[u8]) -> Vec<f32> {
        Samples::read(file).unwrap().frames(1).flatten().collect()
    }

    #[test]
    fn samples_lie_between_minus_one_and_one_and_the_last_frame_is_filled_up() {
        let file = wav(&[0, 16_384, -32_768]);
        assert_eq!(samples(&file), [0.0, 0.5, -1.0]);
        let read = Samples::read(&file).unwrap();
        assert_eq!(read.len(), 3);
        let frames: Vec<_> = read.frames(2).collect();
        assert_eq!(frames, [[0.0, 0.5], [-1.0, 0.0]]);
    }

    #[test]
    fn other_chunks_are_skipped_with_the_byte_that_evens_them_out() {
        let data = 8192i16.to_le_bytes();
        let file = file(&[
            chunk(b"LIST", 3, b"abc"),
            format(1, 1, RATE, 16),
            chunk(b"data", 2, &data),
            chunk(b"id3 ", 4, b"more"),
        ]);
        assert_eq!(samples(&file), [0.25]);
    }

    #[test]
    fn a_length_that_was_not_known_means_all_that_follows() {
        let data = [8192i16.to_le_bytes(), 0i16.to_le_bytes()].concat();
        for length in [0, 0x7fff_f000, u32::MAX] {
            let file = file(&[format(1, 1, RATE, 16), chunk(b"data", length, &data)]);
            assert_eq!(samples(&file), [0.25, 0.0], "{length}");
        }
    }

    #[test]
    fn the_extensible_form_of_the_same_format_is_read() {
        let mut extensible = format(0xfffe, 1, RATE, 16);
        extensible[4] = 40;
        // Size, valid bits, speakers, then the GUID of PCM.
        extensible.extend([22, 0, 16, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0]);
        extensible.extend([0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
        let file = file(&[extensible, chunk(b"data", 2, &8192i16.to_le_bytes())]);
        assert_eq!(samples(&file), [0.25]);
    }

    #[test]
    fn other_formats_are_named_and_the_way_out_is_said() {
        for (tag, channels, rate, bits, says) in [
            (1, 2, 16_000, 16, "PCM, 16000 Hz, 2 channel(s), 16 bit"),
            (1, 1, 44_100, 16, "PCM, 44100 Hz"),
            (1, 1, 16_000, 8, "8 bit"),
            (3, 1, 16_000, 32, "no PCM"),
        ] {
            let file = file(&[
                format(tag, channels, rate, bits),
                chunk(b"data", 4, &[0; 4]),
            ]);
            let error = Samples::read(&file).unwrap_err();
            assert_eq!(error.status(), 415);
            assert!(error.message().contains(says), "{error}");
            assert!(error.message().contains("ffmpeg"), "{error}");
        }
        assert_eq!(Samples::read(b"OggS").unwrap_err().status(), 415);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_and_never_a_panic() {
        let whole = wav(&[1, 2, 3]);
        for end in 12..whole.len() {
            let error = Samples::read(&whole[..end]).unwrap_err();
            assert_eq!(error.status(), 422, "{end}: {error}");
        }
        for (at, value) in (0..whole.len()).flat_map(|at| [(at, 0xff), (at, 0)]) {
            let mut file = whole.clone();
            file[at] = value;
            if let Err(error) = Samples::read(&file) {
                assert!([415, 422].contains(&error.status()), "{at}: {error}");
            }
        }
        let bare = file(&[chunk(b"data", 2, &[0; 2])]);
        assert_eq!(Samples::read(&bare).unwrap_err().status(), 422);
        assert_eq!(Samples::read(&wav(&[])).unwrap_err().status(), 422);
    }
}
