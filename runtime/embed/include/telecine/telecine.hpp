// telecine in a C++ process: all of its headers.
//
//     telecine::Runtime runtime({"/srv/venv"});              // one a process; an environment with telecine in it
//     telecine::Pipeline pipe = runtime.load("bundles/ltx");
//     telecine::Request request;
//     request.prompt = "a red ball rolls to the left";
//     request.output_type = "uint8";
//     request.seed = 0;
//     telecine::Video video = pipe.generate(request);
//     video.frames.data<std::uint8_t>();                     // (B, num_frames, height, width, 3), no copy
//
// Threads: a Runtime may be used by all threads. A Pipeline makes one video at a time; each thread has its own, by
// `clone()`, which shares the weights. Requests run at the same time where the networks do: Python's lock is free while
// a network runs, while the host's callback runs, and whenever no call is made.
//
// Errors: every fault is a `telecine::Error`, by kind (errors.hpp). What the host's own callback throws comes out as it
// is. Nothing else crosses, and nothing ends the process.
//
// Lifetime: what goes in (texts, views of arrays) is read when a call begins and may go when it returns. What comes out
// (`Array`) owns its memory, and may outlive the pipeline and the runtime.
#pragma once

#include "telecine/arrays.hpp"    // IWYU pragma: export
#include "telecine/errors.hpp"    // IWYU pragma: export
#include "telecine/pipeline.hpp"  // IWYU pragma: export
#include "telecine/request.hpp"   // IWYU pragma: export
#include "telecine/runtime.hpp"   // IWYU pragma: export
