import json
import unittest

from app import App
from fnctl import Request, Tensor, answer, testing


def ask(body: str):
    response = answer(App(), Request("POST", "/", [], body.encode()))
    return response.status, json.loads(response.body)


class Iris(unittest.TestCase):
    def test_the_most_probable_species_is_named(self):
        def iris(inputs):
            self.assertEqual(inputs["features"].dimensions, [1, 4])
            return {"probabilities": Tensor.f32([1, 3], [0.25, 0.125, 0.625])}

        testing.set_model("iris", iris)
        self.assertEqual(ask('{"features":[6.3,3.4,5.6,2.4]}'), (200, {"species": "virginica", "probability": 0.625}))

    def test_a_wrong_request_is_refused(self):
        testing.set_model("iris", lambda inputs: {})
        for body in ("", "[]", "{}", '{"features":[1,2,3]}', '{"features":[1,2,3,"4"]}', '{"features":[1,2,3,1e999]}'):
            self.assertEqual(ask(body)[0], 400, body)


if __name__ == "__main__":
    unittest.main()
