// What a run made, as the host takes it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "python.hpp"
#include "telecine/pipeline.hpp"
#include "to_python.hpp"

namespace telecine {

inline DType dtype_of_numpy(const py::dtype& dtype) {
    for (DType known : {DType::uint8, DType::int32, DType::int64, DType::float32, DType::float64})
        if (dtype.is(dtype_in_numpy(known)) || dtype.equal(dtype_in_numpy(known))) return known;
    throw Error("an array of " + text(dtype), "uint8, int32, int64, float32 or float64", "Upgrade telecine.");
}

// The array's own memory where it is in C order, as what telecine makes is; none for None.
inline Array array_from(py::handle value) {
    if (value.is_none()) return {};
    auto array = py::array::ensure(value, py::array::c_style);
    if (!array) throw py::error_already_set();
    const std::vector<std::int64_t> shape(array.shape(), array.shape() + array.ndim());
    const DType dtype = dtype_of_numpy(array.dtype());
    const void* data = array.data();
    auto owner = std::shared_ptr<py::object>(new py::object(std::move(array)), [](py::object* object) {
        drop(*object);
        delete object;
    });
    return {std::shared_ptr<const void>(std::move(owner), data), dtype, shape};
}

inline std::vector<std::int64_t> integers_from(py::handle values) {
    std::vector<std::int64_t> all;
    for (py::handle value : values) all.push_back(value.cast<std::int64_t>());
    return all;
}

inline std::map<std::string, double> timings_from(py::handle timings) {
    std::map<std::string, double> all;
    for (py::handle name : timings) all[text(name)] = timings[name].cast<double>();
    return all;
}

inline Video video_from(py::handle result) {
    return {array_from(result.attr("frames")), array_from(result.attr("latents")),
            result.attr("frame_rate").cast<double>(), integers_from(result.attr("seeds")),
            timings_from(result.attr("timings")), array_from(result.attr("audio")),
            result.attr("sample_rate").is_none() ? 0 : result.attr("sample_rate").cast<int>(),
            array_from(result.attr("audio_latents"))};
}

}  // namespace telecine
