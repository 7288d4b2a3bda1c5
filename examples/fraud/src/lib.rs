//! Scores a card payment: 16 numbers in, the probability of fraud out.

use fnctl_sdk::{Error, Model, Tensor};
use serde::{Deserialize, Serialize};

/// The model's inputs, in its order: amount_log, hour_sin, hour_cos, days_since_last, tx_24h, tx_7d, avg_amount_7d,
/// amount_ratio, merchant_risk, country_mismatch, new_device, distance_km_log, card_age_days_log, failed_1h, mcc_online,
/// velocity.
const FEATURES: usize = 16;

/// One payment.
#[derive(Deserialize)]
pub struct Input {
    features: Vec<f32>,
}

/// The score.
#[derive(Serialize)]
pub struct Output {
    probability: f32,
    fraud: bool,
}

/// What an instance keeps.
pub struct App {
    model: Model,
    threshold: f32,
}

/// Loads the model once per instance.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    let threshold = match std::env::var("THRESHOLD") {
        Ok(text) => text
            .parse()
            .map_err(|_| Error::internal(format!("THRESHOLD is '{text}', not a number")))?,
        Err(_) => 0.5,
    };
    Ok(App {
        model: Model::load("fraud")?,
        threshold,
    })
}

/// Scores one payment.
#[fnctl_sdk::handler]
fn handle(app: &App, input: Input) -> Result<Output, Error> {
    if input.features.len() != FEATURES {
        return Err(Error::bad_request(format!(
            "features must be {FEATURES} numbers, not {}",
            input.features.len()
        )));
    }
    let features = Tensor::new([1, FEATURES], input.features)?;
    let outputs = app.model.run([("features", features)])?;
    let probabilities = outputs.get("fraud_probability")?.elements::<f32>()?;
    let probability = *probabilities
        .first()
        .ok_or_else(|| Error::internal("the model gave no probability"))?;
    Ok(Output {
        probability,
        fraud: probability >= app.threshold,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_sdk::{Request, testing};

    #[test]
    fn a_score_over_the_threshold_is_fraud() {
        testing::set_model("fraud", |inputs| {
            assert_eq!(inputs[0].0, "features");
            assert_eq!(inputs[0].1.dimensions(), [1, 16]);
            Ok(vec![(
                "fraud_probability".into(),
                Tensor::new([1, 1], [0.75f32])?,
            )])
        });
        let answer = __fnctl_answer(Request::post(format!("{{\"features\":{:?}}}", [0.5; 16])));
        assert_eq!(
            String::from_utf8(answer.body).unwrap(),
            "{\"probability\":0.75,\"fraud\":true}"
        );
        let short = __fnctl_answer(Request::post("{\"features\":[1,2]}"));
        assert_eq!(short.status, 400);
    }
}
