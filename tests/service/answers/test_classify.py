"""The four calls of ClassificationService, against a real server with real ONNX Runtime."""

import asyncio
import itertools

import grpc
import pytest

from support.images import file
from support.serving import encoded, labels, occupy, probabilities, pushback, raw, serving, softmax, until
from support.tiny import LABELS, SIDE, plain, tiny_manifest, tiny_model, write_model
from vistazo_proto import classification_pb2 as pb

RED, GREEN, BLUE = plain(200, 20, 10), plain(10, 200, 20), plain(20, 10, 200)


# Classify, the answer


async def test_an_encoded_image_gets_the_probabilities_that_its_pixels_mean(models):
    async with serving(models) as server:
        response = await server.classify(encoded(file(plain(120, 110, 100, height=40, width=30))))

    (result,) = response.results
    assert probabilities(result) == pytest.approx(
        dict(zip(LABELS, softmax(12, 11, 10), strict=True)), abs=1e-6
    )
    assert [prediction.index for prediction in result.predictions.predictions] == [0, 1, 2]


async def test_raw_pixels_of_the_models_own_size_get_the_same_answer_as_their_file(models):
    pixels = plain(120, 110, 100)
    async with serving(models) as server:
        as_pixels = await server.classify(raw(pixels))
        as_file = await server.classify(encoded(file(pixels)))

    assert list(as_pixels.results) == list(as_file.results)


async def test_raw_pixels_of_another_size_are_resized(models):
    async with serving(models) as server:
        response = await server.classify(raw(plain(120, 110, 100, height=33, width=77)))

    assert probabilities(response.results[0])["red"] == pytest.approx(softmax(12, 11, 10)[0], abs=1e-6)


async def test_grey_raw_pixels_are_taken_by_a_model_of_colour_images(models):
    async with serving(models) as server:
        response = await server.classify(raw(plain(90, 90, 90)[:, :, :1]))

    assert probabilities(response.results[0]) == pytest.approx(dict.fromkeys(LABELS, 1 / 3), abs=1e-6)


async def test_results_come_in_the_order_of_the_images(models):
    images = [RED, BLUE, GREEN, GREEN, RED] * 8
    expected = ["red", "blue", "green", "green", "red"] * 8
    async with serving(models) as server:
        response = await server.classify(*(raw(pixels) for pixels in images))

    assert [labels(result)[0] for result in response.results] == expected


async def test_the_response_says_which_model_answered_and_where_the_time_went(models):
    async with serving(models) as server:
        response = await server.classify(encoded(file(RED)))

    assert (response.model, response.version, response.batch_size) == ("tiny", "1", 1)
    assert response.timing.queue_seconds >= 0
    assert response.timing.preprocess_seconds > 0
    assert 0 < response.timing.compute_seconds < 10


async def test_the_batch_size_is_that_of_the_largest_batch_that_the_request_rode_in(models):
    async with serving(models, max_batch_size=4) as server:
        five = await server.classify(*[raw(RED)] * 5)
        three = await server.classify(*[raw(RED)] * 3)

    assert (five.batch_size, three.batch_size) == (4, 3)


async def test_requests_that_come_while_the_engine_is_busy_leave_in_one_batch(tmp_path):
    write_model(tmp_path, model=tiny_model(cost=300))
    async with serving(tmp_path, max_batch_size=3) as server:
        first = asyncio.create_task(server.classify(raw(RED)))
        await until(lambda: server.in_flight() == 1 and server.queued() == 0)
        rest = [asyncio.create_task(server.classify(raw(pixels))) for pixels in (GREEN, BLUE, RED)]
        responses = await asyncio.gather(first, *rest)

    assert [response.batch_size for response in responses] == [1, 3, 3, 3]
    assert [labels(response.results[0])[0] for response in responses] == ["red", "green", "blue", "red"]


# Classify, what is left out


async def test_without_a_model_name_the_only_model_answers(models):
    async with serving(models) as server:
        assert (await server.classify(raw(RED))).model == "tiny"


async def test_without_a_model_name_several_models_are_too_many(models):
    write_model(models, "other")
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED))

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "model: expected the name of one of other, tiny, got none"


async def test_without_a_version_the_highest_answers_and_it_is_compared_as_a_number(models):
    write_model(models, "tiny", version=10)
    write_model(models, "tiny", version=9)
    async with serving(models) as server:
        assert (await server.classify(raw(RED))).version == "10"
        assert (await server.classify(raw(RED), version="10")).version == "10"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "nobody"}, "model: 'nobody' is not in the repository; it has tiny"),
        ({"version": "7"}, "version: '7' of tiny is not served; version 1 is"),
        ({"model": "tiny\nnobody"}, r"model: 'tiny\nnobody' is not in the repository; it has tiny"),
    ],
)
async def test_an_unknown_model_or_version_is_not_found(models, fields, message):
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED), **fields)

    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == message


@pytest.mark.parametrize("top_k", [1, 2, 3])
async def test_top_k_says_how_many_predictions_come(models, top_k):
    async with serving(models) as server:
        response = await server.classify(raw(plain(10, 200, 90)), top_k=top_k)

    assert labels(response.results[0]) == ["green", "blue", "red"][:top_k]


async def test_without_top_k_the_five_most_probable_of_many_classes_come(tmp_path):
    names = tuple(f"class {number}" for number in range(7))
    model = tiny_model(classes=7)
    manifest = tiny_manifest("seven", model.SerializeToString(), labels=names)
    write_model(tmp_path, "seven", model=model, manifest=manifest)
    async with serving(tmp_path) as server:
        response = await server.classify(raw(plain(0, 0, 200)))

    # The equal ones by their index.
    assert labels(response.results[0]) == ["class 2", "class 0", "class 1", "class 3", "class 4"]


@pytest.mark.parametrize("top_k", [0, 4, 2**32 - 1])
async def test_a_top_k_of_none_or_of_more_than_the_classes_is_refused(models, top_k):
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED), top_k=top_k)

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == f"top_k: expected 1 to 3, the number of classes, got {top_k}"


# Classify, when something is wrong


async def test_a_bad_image_among_many_fails_alone(models):
    async with serving(models) as server:
        response = await server.classify(
            raw(RED), encoded(b"not an image"), encoded(file(BLUE)), pb.Image(), encoded(b"")
        )

    outcomes = [result.WhichOneof("outcome") for result in response.results]
    assert outcomes == ["predictions", "error", "predictions", "error", "error"]
    assert [labels(response.results[at])[0] for at in (0, 2)] == ["red", "blue"]
    errors = [response.results[at].error for at in (1, 3, 4)]
    assert {error.code for error in errors} == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}
    assert [error.message for error in errors] == [
        "images[1]: expected a JPEG, PNG, WebP or BMP file, got 12 bytes of text; send the image file itself",
        "images[3]: expected encoded bytes or raw pixels, got neither",
        "images[4]: expected an encoded image, got 0 bytes: the file is empty, or was not read",
    ]


async def test_a_request_of_one_bad_image_fails_as_a_whole(models):
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(encoded(b"not an image"))

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == (
        "images[0]: expected a JPEG, PNG, WebP or BMP file, got 12 bytes of text; send the image file itself"
    )
    assert pushback(failed.value) is None


async def test_a_request_whose_images_are_all_bad_is_answered_with_an_error_for_each(models):
    async with serving(models) as server:
        response = await server.classify(encoded(b"not"), encoded(b"an image"))

    assert [result.error.code for result in response.results] == [3, 3]
    assert response.batch_size == 0


async def test_a_request_without_images_is_refused(models):
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify()

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "images: expected at least 1, got none"


async def test_a_request_of_more_images_than_allowed_is_refused(models):
    async with serving(models, max_images_per_request=3) as server:
        assert len((await server.classify(*[raw(RED)] * 3)).results) == 3
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(*[raw(RED)] * 4)

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "images: expected at most 3, got 4"


async def test_a_message_larger_than_allowed_is_refused_and_the_next_is_answered(models):
    async with serving(models, max_message_mb=1) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(encoded(bytes(1 << 20)))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in failed.value.details()
        assert labels((await server.classify(raw(RED))).results[0])[0] == "red"


# Classify, under load and against deadlines


async def test_a_deadline_that_cannot_be_kept_is_answered_before_the_slow_model_is_done(slow_models):
    async with serving(slow_models, max_batch_size=1) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED), deadline=0.05)
        ran = server.sample("vistazo_inference_samples_total", model="tiny", version="1")

    if failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert pushback(failed.value) > 0
    else:  # the busy machine was slower to refuse than the caller to give up
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert ran == 0


async def test_a_request_that_would_wait_past_its_deadline_is_refused_with_a_time_to_retry(slow_models):
    async with serving(slow_models, max_batch_size=1) as server:
        waiting = [asyncio.create_task(server.classify(raw(RED))) for _ in range(8)]
        await until(lambda: server.queued() >= 6)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED), deadline=0.5)
        for task in waiting:
            task.cancel()

    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the answer is predicted in" in failed.value.details()
    assert 1 <= pushback(failed.value) < 60_000


async def test_a_full_queue_refuses_with_a_time_to_retry_and_keeps_what_it_has(slow_models):
    async with serving(slow_models, max_batch_size=1, queue_limit=2) as server:
        running = await occupy(server, raw(RED))
        waiting = [asyncio.create_task(server.classify(raw(pixels))) for pixels in (GREEN, BLUE)]
        await until(lambda: server.queued() == 2)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED))
        responses = await asyncio.gather(*running, *waiting)

    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.value.details() == "2 samples wait, 1 more would pass the limit of 2"
    assert 1 <= pushback(failed.value) < 60_000
    assert [labels(response.results[0])[0] for response in responses] == ["red", "red", "green", "blue"]


async def test_a_caller_without_a_deadline_gets_the_servers(models):
    async with serving(models, default_deadline_ms=0.001) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED), deadline=None)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert labels((await server.classify(raw(RED), deadline=30)).results[0])[0] == "red"


async def test_a_cancelled_caller_frees_its_place_in_the_queue_at_once(slow_models):
    async with serving(slow_models, max_batch_size=1) as server:
        running = await occupy(server, raw(RED))
        waiting = asyncio.create_task(server.classify(*[raw(RED)] * 5))
        await until(lambda: server.queued() == 5)
        waiting.cancel()
        await until(lambda: server.queued() == 0)
        assert not running[-1].done()
        await asyncio.gather(*running)
        ran = server.sample("vistazo_inference_samples_total", model="tiny", version="1")

    assert ran == 2


# ClassifyStream


def ask(name: str, *images: pb.Image, **fields) -> pb.ClassifyStreamRequest:
    return pb.ClassifyStreamRequest(id=name, request=pb.ClassifyRequest(images=images, **fields))


async def test_each_answer_of_a_stream_carries_the_id_of_its_request(models):
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    asked = [
        (f"{number}-{name}", colours[name]) for number, name in zip(range(300), itertools.cycle(colours))
    ]
    async with serving(models) as server:
        call = server.stub.ClassifyStream(
            iter([ask(name, raw(pixels)) for name, pixels in asked]), timeout=30
        )
        answers = {answer.id: labels(answer.response.results[0])[0] async for answer in call}

    # 300: more than the server works on at once.
    assert answers == {name: name.partition("-")[2] for name, _ in asked}
    assert await call.code() is grpc.StatusCode.OK


async def test_ids_need_not_be_unique_nor_given(models):
    async with serving(models) as server:
        call = server.stub.ClassifyStream(iter([ask("same", raw(RED))] * 2 + [ask("", raw(RED))]), timeout=30)
        ids = sorted([answer.id async for answer in call])

    assert ids == ["", "same", "same"]


async def test_a_stream_answers_what_is_ready_first_not_what_came_first(slow_models):
    async with serving(slow_models, max_batch_size=1) as server:
        call = server.stub.ClassifyStream(timeout=30)
        await call.write(ask("slow", raw(RED)))
        await call.write(ask("wrong", raw(RED), top_k=0))
        first, second = await call.read(), await call.read()
        await call.done_writing()

        assert (first.id, first.WhichOneof("outcome")) == ("wrong", "error")
        assert (second.id, second.WhichOneof("outcome")) == ("slow", "response")
        assert await call.read() is grpc.aio.EOF


async def test_an_error_in_one_request_leaves_the_stream_open(models):
    async with serving(models) as server:
        call = server.stub.ClassifyStream(timeout=30)
        await call.write(ask("model", raw(RED), model="nobody"))
        unknown = await call.read()
        await call.write(ask("image", encoded(b"not an image")))
        bad = await call.read()
        await call.write(ask("empty"))
        empty = await call.read()
        await call.write(ask("good", raw(GREEN)))
        good = await call.read()
        await call.done_writing()

        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    assert (unknown.id, unknown.error.code) == ("model", grpc.StatusCode.NOT_FOUND.value[0])
    assert (bad.id, bad.error.code) == ("image", grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert "expected a JPEG, PNG, WebP or BMP file" in bad.error.message
    assert (empty.id, empty.error.message) == ("empty", "images: expected at least 1, got none")
    assert not bad.HasField("retry_pushback_ms")
    assert labels(good.response.results[0])[0] == "green"


async def test_a_request_of_a_stream_that_is_refused_for_load_says_when_to_retry(slow_models):
    async with serving(slow_models, max_batch_size=1, queue_limit=1) as server:
        call = server.stub.ClassifyStream(timeout=30)
        await call.write(ask("runs", raw(RED)))
        await until(lambda: server.in_flight() == 1 and server.queued() == 0)
        await call.write(ask("follows", raw(RED)))  # formed into the next batch already
        await until(lambda: server.in_flight() == 2 and server.queued() == 0)
        await call.write(ask("waits", raw(RED)))
        await until(lambda: server.queued() == 1)
        await call.write(ask("refused", raw(RED)))
        await call.done_writing()
        answers = {answer.id: answer async for answer in call}

    refused = answers.pop("refused")
    assert refused.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert refused.retry_pushback_ms >= 1
    assert {answer.WhichOneof("outcome") for answer in answers.values()} == {"response"}


async def test_a_stream_without_requests_ends_well(models):
    async with serving(models) as server:
        call = server.stub.ClassifyStream(iter([]), timeout=30)

        assert [answer async for answer in call] == []
        assert await call.code() is grpc.StatusCode.OK


async def test_a_cancelled_stream_leaves_nothing_behind_and_other_callers_their_answers(slow_models):
    async with serving(slow_models, max_batch_size=1) as server:
        await server.health_of()
        tasks = len(asyncio.all_tasks())
        call = server.stub.ClassifyStream(timeout=30)
        for number in range(12):
            await call.write(ask(str(number), raw(RED)))
        await until(lambda: server.in_flight() == 12)
        other = asyncio.create_task(server.classify(raw(GREEN)))
        await until(lambda: server.in_flight() == 13)
        call.cancel()

        await until(lambda: server.in_flight() <= 1, what="the cancelled requests left")
        assert labels((await other).results[0])[0] == "green"
        await until(lambda: server.in_flight() == 0)
        await until(lambda: len(asyncio.all_tasks()) <= tasks, what="the stream's tasks ended")


async def test_a_caller_that_stops_reading_its_stream_is_cut_off_by_its_deadline(models):
    async with serving(models) as server:
        call = server.stub.ClassifyStream(timeout=0.3)
        await call.write(ask("only", raw(RED)))
        assert (await call.read()).id == "only"

        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert labels((await server.classify(raw(RED))).results[0])[0] == "red"


# ListModels and GetModel


async def test_models_are_listed_by_name_with_what_they_take_and_give(models):
    write_model(models, "another", version=3)
    async with serving(models, max_batch_size=4) as server:
        listed = (await server.stub.ListModels(pb.ListModelsRequest())).models

    assert [(model.name, model.version) for model in listed] == [("another", "3"), ("tiny", "1")]
    model = listed[1]
    assert model.state == pb.READY
    assert model.reason == ""
    assert (model.input_height, model.input_width, model.input_channels) == (SIDE, SIDE, 3)
    assert tuple(model.labels) == LABELS
    assert (model.weights, model.precision, model.device) == ("checkpoint", "fp32", "cpu")
    assert model.max_batch_size == 4
    assert [latency.batch_size for latency in model.latencies] == [1, 2, 4]
    assert all(latency.seconds > 0 for latency in model.latencies)


async def test_a_model_that_is_loading_is_listed_so_and_asking_it_is_unavailable(slow_models):
    async with serving(slow_models, wait=False, max_batch_size=1) as server:
        (model,) = (await server.stub.ListModels(pb.ListModelsRequest())).models
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(raw(RED))
        assert not server.server.loading.done()
        await server.server.loading
        assert (await server.stub.GetModel(pb.GetModelRequest(name="tiny"))).state == pb.READY

    assert model.state == pb.LOADING
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.value.details() == "model tiny is loading"


async def test_one_model_can_be_asked_for_by_name_and_version(models):
    async with serving(models) as server:
        by_name = await server.stub.GetModel(pb.GetModelRequest(name="tiny"))
        by_version = await server.stub.GetModel(pb.GetModelRequest(name="tiny", version="1"))
        (listed,) = (await server.stub.ListModels(pb.ListModelsRequest())).models

    assert by_name == by_version == listed


@pytest.mark.parametrize(
    ("name", "version", "code", "message"),
    [
        ("", "", grpc.StatusCode.INVALID_ARGUMENT, "name: expected the name of a model, got none"),
        ("nobody", "", grpc.StatusCode.NOT_FOUND, "model: 'nobody' is not in the repository; it has tiny"),
        ("tiny", "2", grpc.StatusCode.NOT_FOUND, "version: '2' of tiny is not served; version 1 is"),
        ("tiny", "one", grpc.StatusCode.NOT_FOUND, "version: 'one' of tiny is not served; version 1 is"),
    ],
)
async def test_asking_for_a_model_that_is_not_there_says_what_is(models, name, version, code, message):
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.stub.GetModel(pb.GetModelRequest(name=name, version=version))

    assert (failed.value.code(), failed.value.details()) == (code, message)


async def test_an_unknown_method_is_unimplemented(models):
    async with serving(models) as server:
        method = server.channel.unary_unary("/vistazo.v1.ClassificationService/Guess")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(b"")

    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_bytes_that_are_no_request_fail_alone(models):
    async with serving(models) as server:
        method = server.channel.unary_unary("/vistazo.v1.ClassificationService/Classify")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(b"\xff\xff not protobuf")
        assert labels((await server.classify(raw(RED))).results[0])[0] == "red"

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
