//! A picture to the numbers that the model was trained on.
//!
//! The rules are RapidOCR's (`TextClassifier.resize_norm_img` and `config.yaml` of the PyPI package `rapidocr-onnxruntime`
//! 1.4.4), which follow PaddleOCR's `ClsResizeImg`: the image is made 48 pixels high, as wide as its proportions ask for
//! but at most 192; each value becomes `(value / 255 - 0.5) / 0.5`, so -1 to 1; what is missing on the right is filled with
//! 0. The model wants one plane per colour, and blue first, as OpenCV reads images.

use crate::picture::Picture;

/// Colours, height and width of the model's input (`cls_image_shape`).
pub const SHAPE: [usize; 3] = [3, HEIGHT, WIDTH];
const HEIGHT: usize = 48;
const WIDTH: usize = 192;

/// The model's input for one picture: 3 x 48 x 192 numbers.
pub fn prepare(picture: &Picture) -> Vec<f32> {
    let width = (HEIGHT * picture.width())
        .div_ceil(picture.height())
        .clamp(1, WIDTH);
    let mut planes = vec![0.0; SHAPE.iter().product()];
    let columns: Vec<Step> = (0..width)
        .map(|x| Step::new(x, width, picture.width()))
        .collect();
    for y in 0..HEIGHT {
        let row = Step::new(y, HEIGHT, picture.height());
        for (x, column) in columns.iter().enumerate() {
            let [red, green, blue] = blend(picture, column, &row);
            for (plane, value) in [blue, green, red].into_iter().enumerate() {
                planes[(plane * HEIGHT + y) * WIDTH + x] = (value / 255.0 - 0.5) / 0.5;
            }
        }
    }
    planes
}

/// Where a pixel of the small image lies in the large one: between two neighbours.
struct Step {
    first: usize,
    second: usize,
    /// How much of the second, 0 to 1.
    share: f32,
}

impl Step {
    /// The centre of pixel `at` of `small`, on a line of `large`; as OpenCV's `INTER_LINEAR` has it.
    fn new(at: usize, small: usize, large: usize) -> Self {
        let last = large - 1;
        let centre = (at as f64 + 0.5) * large as f64 / small as f64 - 0.5;
        let centre = centre.clamp(0.0, last as f64);
        let first = centre as usize;
        Self {
            first,
            second: (first + 1).min(last),
            share: (centre - first as f64) as f32,
        }
    }
}

/// The colour between four neighbours, in whole steps of 255 like an image's own.
fn blend(picture: &Picture, column: &Step, row: &Step) -> [f32; 3] {
    let along = |y: usize| -> [f32; 3] {
        let (left, right) = (
            picture.colour(column.first, y),
            picture.colour(column.second, y),
        );
        std::array::from_fn(|i| left[i] + (right[i] - left[i]) * column.share)
    };
    let (above, below) = (along(row.first), along(row.second));
    std::array::from_fn(|i| (above[i] + (below[i] - above[i]) * row.share).round())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::tests::encode;
    use png::{BitDepth, ColorType};

    fn at(planes: &[f32], plane: usize, y: usize, x: usize) -> f32 {
        planes[(plane * HEIGHT + y) * WIDTH + x]
    }

    #[test]
    fn the_sample_becomes_what_opencv_makes_of_it() {
        let picture = Picture::decode(include_bytes!("../samples/ocr_line.png")).unwrap();
        let planes = prepare(&picture);
        // The sum and four values of RapidOCR's own preprocessing with OpenCV on this file.
        let sum: f64 = planes.iter().map(|value| f64::from(*value)).sum();
        assert!((sum - 20_756.14).abs() < 20.0, "{sum}");
        for (plane, y, x, wanted) in [
            (0, 10, 20, 1.0),
            (1, 24, 96, 1.0),
            (2, 40, 100, 1.0),
            (0, 20, 50, -0.552_94),
        ] {
            let got = at(&planes, plane, y, x);
            // OpenCV calculates in steps of 1/2048; one of 255 grey levels is 0.0078.
            assert!((got - wanted).abs() < 0.008, "{plane} {y} {x}: {got}");
        }
    }

    #[test]
    fn blue_comes_first_and_the_rest_of_a_narrow_image_is_zero() {
        let file = encode(
            2,
            2,
            ColorType::Rgb,
            BitDepth::Eight,
            &[255, 0, 0].repeat(4),
        );
        let planes = prepare(&Picture::decode(&file).unwrap());
        assert_eq!(
            [0, 1, 2].map(|plane| at(&planes, plane, 30, 47)),
            [-1.0, -1.0, 1.0]
        );
        assert_eq!([0, 1, 2].map(|plane| at(&planes, plane, 30, 48)), [0.0; 3]);
        assert_eq!(planes.len(), 27_648);
    }

    #[test]
    fn the_thinnest_images_have_a_pixel_left() {
        for (width, height) in [(1, 3000), (3000, 1)] {
            let data = vec![0; width * height];
            let file = encode(
                width as u32,
                height as u32,
                ColorType::Grayscale,
                BitDepth::Eight,
                &data,
            );
            let planes = prepare(&Picture::decode(&file).unwrap());
            assert_eq!(at(&planes, 0, 47, 0), -1.0);
        }
    }
}
