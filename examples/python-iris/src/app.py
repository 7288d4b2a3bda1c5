"""Names an iris from four measures of its flower."""

from fnctl import BadRequest, Model, Request, Tensor, export

# The model's outputs, in its order.
SPECIES = ["setosa", "versicolor", "virginica"]
# The model's inputs, in its order: sepal length, sepal width, petal length, petal width, in centimetres.
FEATURES = 4
LONGEST = 100


def is_length(value) -> bool:
    """Whether a flower can measure this."""
    return isinstance(value, (int, float)) and 0 <= value <= LONGEST


class App:
    """What an instance keeps."""

    def __init__(self):
        self.model = Model.load("iris")

    def handle(self, request: Request):
        """`{"features": [...]}` in, the species and the probability of each out."""
        features = request.json()
        features = features.get("features") if isinstance(features, dict) else None
        if not isinstance(features, list) or len(features) != FEATURES or not all(map(is_length, features)):
            raise BadRequest(f"features must be {FEATURES} lengths in cm: sepal length and width, petal length and width")
        outputs = self.model.run({"features": Tensor.f32([1, FEATURES], features)})
        probabilities = dict(zip(SPECIES, outputs["probabilities"].elements()))
        return {"species": max(probabilities, key=probabilities.get), "probabilities": probabilities}


IncomingHandler, Lifecycle = export(App)
