// Errors and stops: each leaves the process and the pipeline as they were.
#include <atomic>
#include <chrono>
#include <fstream>
#include <future>
#include <limits>
#include <string>
#include <thread>

#include "checks.hpp"

using namespace telecine;

void check_errors(const Given& given) {
    Runtime runtime(given.environment);
    const auto missing = expect_error<BundleError>("does not exist", [&] { runtime.load(given.bundle + "-not"); });
    expect(missing.got() == given.bundle + "-not does not exist", "got is Python's: " + missing.got());
    expect(!missing.expected().empty() && !missing.fix().empty(), "expected and fix are there");
    expect_error<BundleError>("", [&] { runtime.load(given.more.at(0)); });             // a damaged one
    expect_error<BundleError>("/no\\udcffname", [&] { runtime.load("/no\xffname"); });  // no UTF-8: names are bytes
    LoadOptions options = one_thread();
    options.backend = "cuda";
    expect_error<BackendError>("backend 'cuda'", [&] { runtime.load(given.bundle, options); });
    options = one_thread();
    options.options->providers = {{"NoExecutionProvider"}};
    Pipeline unknown = runtime.load(given.bundle, options);  // networks load when they are needed
    expect_error<BackendError>("NoExecutionProvider", [&] { unknown.generate(small()); });
    options = one_thread();
    options.cuda_graphs = true;
    expect_error<BackendError>("cuda_graphs=True", [&] { runtime.load(given.bundle, options); });
    options = one_thread();
    options.prompt_cache = "much";
    expect_error<RequestError>("prompt_cache is 'much'", [&] { runtime.load(given.bundle, options); });
    options = one_thread();
    options.options->gpu_mem_limit = 0;
    expect_error<BackendError>("gpu_mem_limit is 0", [&] { runtime.load(given.bundle, options); });
    options = one_thread();
    options.options->provider_options = {{"CUDAExecutionProvider", {{"device_id", "1"}}}};
    expect_error<BackendError>("provider_options sets device_id", [&] { runtime.load(given.bundle, options); });
    options = one_thread();
    options.engines = given.bundle;
    expect_error<BackendError>("engines with backend", [&] { runtime.load(given.bundle, options); });

    Pipeline pipe = runtime.load(given.bundle, one_thread());
    const std::string frames = bytes(pipe.generate(small()).frames);
    const auto refused = [&](const std::string& says, auto change) {
        Request request = small();
        change(request);
        expect_error<RequestError>(says, [&] { pipe.generate(request); });
        expect_error<RequestError>(says, [&] { pipe.stream(request); });
    };
    const float value = 0;
    refused("width is 50", [](Request& r) { r.width = 50; });
    refused("num_inference_steps is -1", [](Request& r) { r.num_inference_steps = -1; });
    refused("guidance_scale is nan", [](Request& r) { r.guidance_scale = std::numeric_limits<double>::quiet_NaN(); });
    refused("neither given", [](Request& r) { r.prompt.reset(); });
    refused("preset 'none'", [](Request& r) { r.preset = "none"; });
    refused("output_type is 'pt'", [](Request& r) { r.output_type = "pt"; });
    refused("not UTF-8", [](Request& r) { r.prompt = "\xff"; });
    refused("2 seeds", [](Request& r) { r.seed = std::vector<std::int64_t>{1, 2}; });
    refused("there is no file /no/file.png", [](Request& r) { r.image = "/no/file.png"; });
    refused("there is no file /no/file.mp4", [](Request& r) { r.video = "/no/file.mp4"; });
    refused("strength for a ltx-video model", [](Request& r) { r.strength = 0.5; });
    refused("use_dynamic_cfg for a ltx-video model", [](Request& r) { r.use_dynamic_cfg = true; });
    refused("motion_speed for a ltx-video model", [](Request& r) { r.motion_speed = 0.5; });
    refused("sigmas for a ltx-video model", [](Request& r) { r.sigmas = std::vector<double>{1.0}; });
    refused("spatio_temporal_guidance_blocks for a ltx-video model",
            [](Request& r) { r.spatio_temporal_guidance_blocks = std::vector<int>{1}; });
    refused("modality_scale for a ltx-video model", [](Request& r) { r.modality_scale = 3.0; });
    refused("audio_guidance_scale for a ltx-video model", [](Request& r) { r.audio_guidance_scale = 7.0; });
    refused("audio_guidance_rescale for a ltx-video model", [](Request& r) { r.audio_guidance_rescale = 0.5; });
    refused("audio_stg_scale for a ltx-video model", [](Request& r) { r.audio_stg_scale = 1.0; });
    refused("audio_modality_scale for a ltx-video model", [](Request& r) { r.audio_modality_scale = 3.0; });
    refused("use_cross_timestep for a ltx-video model", [](Request& r) { r.use_cross_timestep = false; });
    refused("image_crf for a ltx-video model", [](Request& r) { r.image_crf = 0; });
    refused("noise_scale for a ltx-video model", [](Request& r) { r.noise_scale = 0.5; });
    refused("audio_latents for a ltx-video model", [](Request& r) {
        static const float latent = 0;
        r.audio_latents = ArrayView(&latent, {1, 1, 1, 1});
    });
    refused("second_stage has sigmas, noise_scale, spatio_temporal_guidance_blocks, modality_scale, "
            "audio_guidance_scale, audio_guidance_rescale, audio_stg_scale, audio_modality_scale",
            [](Request& r) {
                SecondStage stage;
                stage.sigmas = std::vector<double>{0.9};
                stage.noise_scale = 0.9;
                stage.spatio_temporal_guidance_blocks = std::vector<int>{1};
                stage.modality_scale = 3.0;
                stage.audio_guidance_scale = 7.0;
                stage.audio_guidance_rescale = 0.5;
                stage.audio_stg_scale = 1.0;
                stage.audio_modality_scale = 3.0;
                r.second_stage = stage;
            });
    refused("a view of no memory", [](Request& r) { r.image = ArrayView(static_cast<float*>(nullptr), {64, 64, 3}); });
    refused("strides for some", [&](Request& r) { r.image = ArrayView(&value, {1, 1, 3}, {0}); });
    refused("shape (1, 1, 1)", [&](Request& r) { r.image = ArrayView(&value, {1, 1, 1}); });
    refused("neither an image nor a video", [](Request& r) { r.conditions.emplace(1); });
    refused("downscale_factor is 7", [](Request& r) { r.second_stage.emplace().downscale_factor = 7; });

    Request latents = small();
    latents.output_type = "latent";
    const Video hidden = pipe.generate(latents);
    expect(!hidden.frames && hidden.latents.dtype() == DType::float32, "a request for latents has no frames");
    expect_error<RequestError>("not there", [&] { hidden.frames.data<float>(); });
    expect_error<RequestError>("another type", [&] { hidden.latents.data<double>(); });
    expect_error<RequestError>("latents", [&] { pipe.stream(latents); });
    expect_error<SourceError>("/no/lora", [&] { pipe.load_lora({{"/no/lora.safetensors"}}); });
    pipe.load_lora({});

    Pipeline moved = std::move(pipe);
    expect_error<RequestError>("moved from", [&] { pipe.generate(small()); });
    expect(bytes(moved.generate(small()).frames) == frames, "the same frames as before all of it");
    moved.close();
    moved.close();
    expect_error<RequestError>("this pipeline is closed", [&] { moved.generate(small()); });
    expect_error<RequestError>("this pipeline is closed", [&] { moved.clone(); });
}

void check_bad_environments(const Given& given) {
    const auto refused = [](const std::string& says, const std::string& environment) {
        expect_error<BackendError>(says, [&] { Runtime runtime({environment}); });
    };
    refused("is no folder", "/no/environment");
    refused("has no bin/python3", given.bundle);
    refused("has no lib/python", given.more.at(0));   // of another version
    refused("cannot be imported", given.more.at(1));  // without telecine: Python runs over it now
    refused("an interpreter stays", given.environment.environment);
    // The same one, and where telecine and NumPy are.
    Runtime runtime({given.more.at(1), {given.environment.python_path.at(0), given.more.at(2)}});
    expect_error<BackendError>("a second Runtime", [&] { Runtime second(given.environment); });
    expect_error<BundleError>("does not exist", [&] { runtime.load("/no/bundle"); });
}

void check_cancelling(const Given& given) {
    Runtime runtime(given.environment);
    Pipeline pipe = runtime.load(given.bundle, one_thread());
    Request request = small();
    request.num_inference_steps = 40;
    int last = -1;

    // From another thread, while step 3 is shown: no other step begins.
    RunOptions options;
    std::promise<void> third, cancelled;
    options.on_step = [&](const Progress& progress) {
        last = progress.step;
        expect(progress.steps == 40 && progress.sigma > 0 && progress.shape.size() == 3, "what a step tells");
        if (progress.step == 3) {
            third.set_value();
            cancelled.get_future().wait();
        }
        return true;
    };
    std::thread other([&] {
        third.get_future().wait();
        options.cancellation.request();
        cancelled.set_value();
    });
    expect_error<Cancelled>("the host cancelled the run after step 4 of 40", [&] { pipe.generate(request, options); });
    other.join();
    expect(last == 3, "the run ends with the step that it was cancelled in");

    // Asked at any time: at most the step that runs is shown.
    RunOptions racing;
    std::atomic<int> shown{0}, when{0};
    racing.on_step = [&](const Progress&) { return ++shown, true; };
    std::thread racer([&] {
        while (shown < 2) std::this_thread::yield();
        racing.cancellation.request();
        when = shown.load();
    });
    expect_error<Cancelled>("the host cancelled the run", [&] { pipe.generate(request, racing); });
    racer.join();
    expect(shown <= when + 1, "it is cancelled within a step");

    // Before it begins; and it stays cancelled.
    shown = 0;
    expect_error<Cancelled>("before its first step", [&] { pipe.generate(request, racing); });
    expect_error<Cancelled>("before its first step", [&] { pipe.stream(request, racing); });
    expect(shown == 0, "no step was done");

    RunOptions answer;
    answer.on_step = [](const Progress& progress) { return progress.step < 1; };
    expect_error<Cancelled>("on_step stopped the run after step 2 of 40", [&] { pipe.generate(request, answer); });

    struct OfTheHost {};
    RunOptions throwing;
    throwing.on_step = [](const Progress&) -> bool { throw OfTheHost(); };
    try {
        pipe.generate(request, throwing);
        expect(false, "the callback's exception comes out");
    } catch (const OfTheHost&) {
    }

    RunOptions limited;
    limited.time_limit = std::chrono::milliseconds(50);
    limited.on_step = [](const Progress&) { return std::this_thread::sleep_for(std::chrono::milliseconds(30)), true; };
    expect_error<Cancelled>("the time_limit of 0.05 s had passed after step", [&] { pipe.generate(request, limited); });
    limited.time_limit = std::chrono::seconds(-1);
    expect_error<RequestError>("a time_limit of -1 s", [&] { pipe.generate(request, limited); });

    // It goes on where none of that happens; writing into the latents changes what comes out.
    request.num_inference_steps = 3;
    const std::string frames = bytes(pipe.generate(request).frames);
    RunOptions watched;
    watched.on_step = [](const Progress&) { return true; };
    expect(bytes(pipe.generate(request, watched).frames) == frames, "watching changes nothing");
    watched.on_step = [](const Progress& progress) {
        for (std::int64_t i = 0; i < progress.shape[0] * progress.shape[1] * progress.shape[2]; ++i)
            progress.latents[i] = 0;
        return true;
    };
    expect(bytes(pipe.generate(request, watched).frames) != frames, "latents may be replaced");
}
