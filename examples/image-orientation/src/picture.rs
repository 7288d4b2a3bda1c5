//! A PNG from a stranger, decoded within bounds.
//!
//! A file of a few kilobytes can claim billions of pixels or unpack to gigabytes. So the claim is checked before any
//! memory is taken for it, what is not pixels (texts, colour profiles) is skipped unread, and the decoder stops where the
//! image ends however much compressed data follows.

use fnctl_sdk::Error;
use png::{DecodingError, Limits, Transformations};
use std::io::Cursor;

/// Pixels of an image at most: 16 MiB once decoded, four bytes each.
pub const MAX_PIXELS: u64 = 4 << 20;
/// Bytes that the decoder may take beside the pixels.
const MAX_DECODER_BYTES: usize = 16 << 20;

/// What files of other formats begin with, to tell the caller what it sent.
const OTHER_FORMATS: &[(&[u8], &str)] = &[
    (b"\xff\xd8\xff", "a JPEG"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"%PDF", "a PDF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
];
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A decoded image: rows of pixels of one to four bytes.
#[derive(Debug)]
pub struct Picture {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// Decodes a PNG of any kind; of an animation, its first image.
    pub fn decode(file: &[u8]) -> Result<Self, Error> {
        if !file.starts_with(SIGNATURE) {
            let found = OTHER_FORMATS
                .iter()
                .find(|(start, _)| file.starts_with(start));
            let found = found.map_or("of another format", |(_, name)| name);
            return Err(Error::unsupported_media_type(format!(
                "the body is {found}; send a PNG file, its bytes as they are"
            )));
        }
        let limits = Limits {
            bytes: MAX_DECODER_BYTES,
        };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), limits);
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        // Palettes and one to four bits become eight bits a channel, and so do sixteen.
        decoder.set_transformations(Transformations::normalize_to_color8());
        let header = decoder.read_header_info().map_err(refuse)?;
        let (width, height) = (header.width, header.height);
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(Error::too_large(format!(
                "the image has {width} x {height} pixels, more than {MAX_PIXELS}; send it smaller, or cut the line of text out"
            )));
        }
        let mut reader = decoder.read_info().map_err(refuse)?;
        let size = reader
            .output_buffer_size()
            .ok_or_else(|| Error::too_large("the image does not fit into memory"))?;
        let mut pixels = vec![0; size];
        let frame = reader.next_frame(&mut pixels).map_err(refuse)?;
        Ok(Self {
            width: frame.width as usize,
            height: frame.height as usize,
            channels: frame.color_type.samples(),
            pixels,
        })
    }

    /// Pixels of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Red, green and blue, 0 to 255, at a place inside the image. What is see-through shows white, like paper.
    pub fn colour(&self, x: usize, y: usize) -> [f32; 3] {
        let start = (y * self.width + x) * self.channels;
        let pixel = &self.pixels[start..start + self.channels];
        let (colour, alpha) = match *pixel {
            [grey] => ([grey; 3], 255),
            [grey, alpha] => ([grey; 3], alpha),
            [red, green, blue] => ([red, green, blue], 255),
            [red, green, blue, alpha] => ([red, green, blue], alpha),
            _ => ([255; 3], 255),
        };
        let alpha = f32::from(alpha) / 255.0;
        colour.map(|value| f32::from(value) * alpha + 255.0 * (1.0 - alpha))
    }
}

fn refuse(error: DecodingError) -> Error {
    match error {
        DecodingError::LimitsExceeded => {
            Error::too_large("the PNG needs more memory to decode than this function gives it")
        }
        DecodingError::IoError(_) => Error::unprocessable("the PNG ends too early; send all of it"),
        DecodingError::Format(error) => {
            Error::unprocessable(format!("the PNG is damaged: {error}"))
        }
        DecodingError::Parameter(error) => Error::internal(error.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use png::{BitDepth, ColorType};

    pub(crate) fn encode(
        width: u32,
        height: u32,
        colour: ColorType,
        depth: BitDepth,
        data: &[u8],
    ) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if colour == ColorType::Indexed {
            encoder.set_palette(vec![255, 0, 0, 0, 0, 255]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        file
    }

    /// A file that claims a size and has no pixels.
    fn claim(width: u32, height: u32) -> Vec<u8> {
        let mut file = encode(1, 1, ColorType::Grayscale, BitDepth::Eight, &[0]);
        set_size(&mut file, width, height);
        file
    }

    fn set_size(file: &mut [u8], width: u32, height: u32) {
        file[16..20].copy_from_slice(&width.to_be_bytes());
        file[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc(&file[12..29]);
        file[29..33].copy_from_slice(&checksum.to_be_bytes());
    }

    /// CRC-32 as PNG has it (PNG specification, annex D).
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        })
    }

    #[test]
    fn every_kind_of_pixel_becomes_a_colour() {
        let red = [255.0, 0.0, 0.0];
        let cases = [
            (ColorType::Rgb, BitDepth::Eight, &[255, 0, 0][..], red),
            (
                ColorType::Rgb,
                BitDepth::Sixteen,
                &[255, 255, 0, 0, 0, 0],
                red,
            ),
            (ColorType::Rgba, BitDepth::Eight, &[255, 0, 0, 255], red),
            (
                ColorType::Rgba,
                BitDepth::Eight,
                &[255, 0, 0, 0],
                [255.0; 3],
            ),
            (ColorType::Grayscale, BitDepth::Eight, &[7], [7.0; 3]),
            (ColorType::Grayscale, BitDepth::One, &[0x80], [255.0; 3]),
            (
                ColorType::GrayscaleAlpha,
                BitDepth::Eight,
                &[0, 51],
                [204.0; 3],
            ),
            (
                ColorType::Indexed,
                BitDepth::One,
                &[0x80],
                [0.0, 0.0, 255.0],
            ),
        ];
        for (colour, depth, data, wanted) in cases {
            let picture = Picture::decode(&encode(1, 1, colour, depth, data)).unwrap();
            assert_eq!((picture.width(), picture.height()), (1, 1));
            assert_eq!(picture.colour(0, 0), wanted, "{colour:?} {depth:?}");
        }
    }

    #[test]
    fn a_size_is_refused_before_memory_is_taken_for_it() {
        for (width, height) in [(60_000, 60_000), (2049, 2048), (1, u32::MAX >> 1)] {
            let error = Picture::decode(&claim(width, height)).unwrap_err();
            assert_eq!(error.status(), 413, "{error}");
            assert!(error.message().contains(&format!("{width} x {height}")));
        }
        // The largest that is let through has no pixels behind its claim.
        assert_eq!(
            Picture::decode(&claim(2048, 2048)).unwrap_err().status(),
            422
        );
        assert_eq!(Picture::decode(&claim(0, 7)).unwrap_err().status(), 422);
    }

    #[test]
    fn a_damaged_file_is_told_from_one_of_another_format() {
        let whole = encode(2, 2, ColorType::Rgb, BitDepth::Eight, &[9; 12]);
        for end in SIGNATURE.len()..whole.len() - 12 {
            let error = Picture::decode(&whole[..end]).unwrap_err();
            assert_eq!(error.status(), 422, "{end} bytes: {error}");
        }
        let error = Picture::decode(b"\xff\xd8\xff\xe0 JFIF").unwrap_err();
        assert_eq!(error.status(), 415);
        assert!(error.message().contains("JPEG"), "{error}");
        assert_eq!(Picture::decode(b"{}").unwrap_err().status(), 415);
    }

    #[test]
    fn what_unpacks_to_more_than_the_image_is_left_alone() {
        // The data of 4 million pixels behind a header that says one.
        let (width, height) = (2048, 2048);
        let data = vec![0; width * height];
        let mut file = encode(
            width as u32,
            height as u32,
            ColorType::Grayscale,
            BitDepth::Eight,
            &data,
        );
        assert!(file.len() < 40_000, "{}", file.len());
        set_size(&mut file, 1, 1);
        assert_eq!(Picture::decode(&file).unwrap().colour(0, 0), [0.0; 3]);
    }

    #[test]
    fn flipped_bits_are_an_error_or_a_picture_and_never_a_panic() {
        let whole = include_bytes!("../samples/ocr_line.png");
        for at in (0..whole.len()).step_by(29) {
            let mut file = whole.to_vec();
            file[at] ^= 0x55;
            if let Err(error) = Picture::decode(&file) {
                assert!([413, 415, 422].contains(&error.status()), "{at}: {error}");
            }
        }
    }
}
