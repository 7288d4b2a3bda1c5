"""The wrapper on the host: `PYTHONPATH=. python3 -m unittest discover -s tests` in sdk/python."""

import contextlib
import io
import json
import unittest

from fnctl import BadRequest, Model, ModelError, Request, Response, Tensor, TensorType, answer, environment, export, testing


class Tensors(unittest.TestCase):
    def test_elements_come_back_as_they_went_in_little_endian(self):
        tensor = Tensor.f32([2, 2], [1.0, -2.5, 3.0, 4.0])
        self.assertEqual(tensor.data[:8], bytes([0, 0, 0x80, 0x3F, 0, 0, 0x20, 0xC0]))
        self.assertEqual(tensor.elements(), [1.0, -2.5, 3.0, 4.0])
        self.assertEqual(Tensor.i64([], [16000]).elements(), [16000])
        self.assertEqual(Tensor.i32([1], [-2]).data, b"\xfe\xff\xff\xff")
        self.assertEqual(Tensor.f64([1], [0.1]).elements(), [0.1])
        self.assertEqual(Tensor([2], TensorType.FP16, b"\0<\0\0").dimensions, [2])

    def test_a_shape_that_the_elements_do_not_fill_is_refused(self):
        with self.assertRaisesRegex(ValueError, r"3 elements do not fill a tensor of shape \[2, 2\]"):
            Tensor.u8([2, 2], [1, 2, 3])
        for dimensions in ([-1], [2**32], [1.0], [True]):
            with self.assertRaisesRegex(ValueError, "a dimension must be"):
                Tensor.f32(dimensions, [])

    def test_an_element_that_does_not_fit_its_type_is_refused(self):
        for make in (lambda: Tensor.u8([1], [256]), lambda: Tensor.i32([1], [0.5]), lambda: Tensor.f32([1], ["1"])):
            with self.assertRaisesRegex(ValueError, "the elements are not all"):
                make()
        with self.assertRaisesRegex(ValueError, "no BF16 numbers"):
            Tensor.of(TensorType.BF16, [1], [1])


class Models(unittest.TestCase):
    def test_a_model_sees_named_tensors_and_gives_named_tensors(self):
        def double(inputs):
            self.assertEqual(inputs["x"], Tensor.i32([1, 3], [1, 2, 3]))
            return {"y": Tensor.i32([1, 3], [2 * x for x in inputs["x"].elements()])}

        testing.set_model("double", double)
        outputs = Model.load("double").run({"x": Tensor.i32([1, 3], [1, 2, 3])})
        self.assertEqual(outputs, {"y": Tensor.i32([1, 3], [2, 4, 6])})
        with self.assertRaises(BadRequest):
            Model.load("double").run({"x": [1, 2, 3]})

    def test_errors_say_their_kind_and_the_next_step(self):
        with self.assertRaisesRegex(ModelError, r"^not-found: the model 'absent': .*; declare the model under \[models\]"):
            Model.load("absent")

        def slow(inputs):
            raise testing.failure("TIMEOUT", "the deadline passed")

        testing.set_model("slow", slow)
        with self.assertRaises(ModelError) as caught:
            Model.load("slow").run({})
        self.assertEqual((caught.exception.status, caught.exception.kind), (504, "timeout"))


class App:
    def __init__(self, handle=None):
        self.handle = handle


class Answers(unittest.TestCase):
    def test_json_errors_and_bugs(self):
        fine = answer(App(lambda request: {"a": request.json()}), Request("POST", "/", [], b"[1]"))
        self.assertEqual(fine, Response(200, [("content-type", "application/json")], b'{"a":[1]}'))
        wrong = answer(App(lambda request: request.json()), Request(body=b"{"))
        self.assertEqual(wrong.status, 400)
        self.assertIn("not JSON", json.loads(wrong.body)["error"])
        log = io.StringIO()
        with contextlib.redirect_stderr(log):
            broken = answer(App(lambda request: request.secret), Request())
        self.assertEqual(broken.status, 500)
        self.assertNotIn(b"secret", broken.body)
        self.assertIn("secret", log.getvalue())
        deep = answer(App(lambda request: request.json()), Request(body=b"[" * 100_000))
        self.assertEqual(deep.status, 400)

    def test_headers_are_found_whatever_their_case(self):
        request = Request(headers=[("x-a", b"1"), ("x-a", b"2")])
        self.assertEqual((request.header("X-A"), request.header("x-b")), ("1", None))

    def test_an_app_starts_once_and_a_failed_start_is_a_text(self):
        starts = []

        class Counted:
            def __init__(self):
                starts.append(1)

        _, lifecycle = export(Counted)
        lifecycle().init()
        lifecycle().init()
        self.assertEqual(len(starts), 1)

        class Failing:
            def __init__(self):
                Model.load("absent")

        _, lifecycle = export(Failing)
        with self.assertRaises(testing.Err) as caught:
            lifecycle().init()
        self.assertIn("ModelError: not-found", caught.exception.value)

    def test_the_environment_is_a_dictionary(self):
        testing.set_environment({"THRESHOLD": "0.5"})
        self.assertEqual(environment(), {"THRESHOLD": "0.5"})


if __name__ == "__main__":
    unittest.main()
