"""Tells the species of an iris from four lengths."""

from fnctl import BadRequest, Model, Request, Tensor, export

# The model's outputs and inputs, in its order.
SPECIES = ["setosa", "versicolor", "virginica"]
FEATURES = ["sepal length", "sepal width", "petal length", "petal width"]


def is_length(value) -> bool:
    """Whether a flower can measure this, in centimetres."""
    return isinstance(value, (int, float)) and 0 <= value <= 100


class App:
    """What an instance keeps. Made once per instance, before its first request."""

    def __init__(self):
        self.model = Model.load("iris")

    def handle(self, request: Request):
        """Once per request. What is returned becomes JSON; a Response goes out as it is."""
        body = request.json()
        features = body.get("features") if isinstance(body, dict) else None
        if not isinstance(features, list) or len(features) != len(FEATURES) or not all(map(is_length, features)):
            raise BadRequest(f"features must be {len(FEATURES)} lengths in cm: {', '.join(FEATURES)}")
        outputs = self.model.run({"features": Tensor.f32([1, len(FEATURES)], features)})
        probabilities = outputs["probabilities"].elements()
        probability = max(probabilities)
        return {"species": SPECIES[probabilities.index(probability)], "probability": probability}


# What the platform calls.
IncomingHandler, Lifecycle = export(App)
