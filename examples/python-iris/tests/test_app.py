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
            self.assertEqual(inputs["features"], Tensor.f32([1, 4], [6.5, 3, 5.5, 2]))
            return {"probabilities": Tensor.f32([1, 3], [0.25, 0.125, 0.625])}

        testing.set_model("iris", iris)
        status, body = ask('{"features":[6.5,3,5.5,2]}')
        self.assertEqual((status, body["species"]), (200, "virginica"))
        self.assertEqual(body["probabilities"]["versicolor"], 0.125)

    def test_what_no_flower_measures_is_refused(self):
        testing.set_model("iris", lambda inputs: {})
        for body in ("", "[]", "{}", '{"features":[1,2,3]}', '{"features":[1,2,3,"4"]}', '{"features":[1,2,3,1e999]}'):
            self.assertEqual(ask(body)[0], 400, body)


if __name__ == "__main__":
    unittest.main()
