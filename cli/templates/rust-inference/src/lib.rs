//! Tells the species of an iris from four lengths.

use fnctl_sdk::{Error, Model, Tensor};
use serde::{Deserialize, Serialize};

/// The model's classes, in its order.
const SPECIES: [&str; 3] = ["setosa", "versicolor", "virginica"];

/// One flower; lengths in cm.
#[derive(Deserialize)]
struct Flower {
    sepal_length: f32,
    sepal_width: f32,
    petal_length: f32,
    petal_width: f32,
}

/// What it is.
#[derive(Serialize)]
struct Answer {
    species: &'static str,
    probability: f32,
}

/// What an instance keeps between requests.
struct App {
    model: Model,
}

/// Once per instance, before its first request.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    // The name under [models] in function.toml.
    Ok(App {
        model: Model::load("iris")?,
    })
}

/// Once per request: JSON in, JSON out.
#[fnctl_sdk::handler]
fn handle(app: &App, flower: Flower) -> Result<Answer, Error> {
    let features = Tensor::new(
        [1, 4],
        [
            flower.sepal_length,
            flower.sepal_width,
            flower.petal_length,
            flower.petal_width,
        ],
    )?;
    let outputs = app.model.run([("features", features)])?;
    let probabilities = outputs.get("probabilities")?.elements::<f32>()?;
    let (species, probability) = SPECIES
        .into_iter()
        .zip(probabilities)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .ok_or_else(|| Error::internal("the model gave no probabilities"))?;
    Ok(Answer {
        species,
        probability,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_sdk::{Request, testing};

    #[test]
    fn the_likeliest_species_is_the_answer() {
        // On this machine there is no platform: the test says what the model answers.
        testing::set_model("iris", |inputs| {
            assert_eq!(inputs[0].0, "features");
            assert_eq!(inputs[0].1.elements::<f32>()?, [6.3, 3.4, 5.6, 2.4]);
            let probabilities = Tensor::new([1, 3], [0.0f32, 0.25, 0.75])?;
            Ok(vec![("probabilities".into(), probabilities)])
        });
        let answer = __fnctl_answer(Request::post(include_str!("../request.json")));
        assert_eq!(
            String::from_utf8(answer.body).unwrap(),
            "{\"species\":\"virginica\",\"probability\":0.75}"
        );
        assert_eq!(__fnctl_answer(Request::post("{}")).status, 400);
    }
}
