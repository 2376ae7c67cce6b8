#include "compute.hpp"

#include <cmath>
#include <stdexcept>

namespace telecine {
namespace {

template <class T>
T& at(std::byte* data, int64_t index) {
    return reinterpret_cast<T*>(data)[index];
}

double load(const View& view, int64_t index) {
    switch (view.dtype) {
        case DType::float32:
            return at<float>(view.data, index);
        case DType::float64:
            return at<double>(view.data, index);
        case DType::int32:
            return at<int32_t>(view.data, index);
        case DType::int64:
            return static_cast<double>(at<int64_t>(view.data, index));
        case DType::uint8:
            return at<uint8_t>(view.data, index);
    }
    throw std::logic_error("a dtype that does not exist");
}

void store(const View& view, int64_t index, double value) {
    switch (view.dtype) {
        case DType::float32:
            at<float>(view.data, index) = static_cast<float>(value);
            return;
        case DType::float64:
            at<double>(view.data, index) = value;
            return;
        case DType::int32:
            at<int32_t>(view.data, index) = static_cast<int32_t>(value);
            return;
        case DType::int64:
            at<int64_t>(view.data, index) = static_cast<int64_t>(value);
            return;
        case DType::uint8:
            at<uint8_t>(view.data, index) = static_cast<uint8_t>(value);
            return;
    }
}

// The first elements of a row, the steps along it, and how many.
struct Row {
    int64_t out = 0, a = 0, b = 0;
    int64_t out_step = 0, a_step = 0, b_step = 0;
    int64_t count = 0;
};

int64_t stride_of(const Operand& operand, size_t axis) { return operand.view ? operand.view->strides[axis] : 0; }

// Call `row` for every innermost row, from `axis` on.
template <class F>
void each_row(const View& out, const Operand& a, const Operand& b, const F& row, Row place = {}, size_t axis = 0) {
    const bool scalar = out.shape.empty();
    place.out_step = scalar ? 0 : out.strides[axis];
    place.a_step = scalar ? 0 : stride_of(a, axis);
    place.b_step = scalar ? 0 : stride_of(b, axis);
    place.count = scalar ? 1 : out.shape[axis];
    if (axis + 1 >= out.shape.size()) return row(place);
    Row next = place;
    for (int64_t i = 0; i < place.count; ++i) {
        each_row(out, a, b, row, next, axis + 1);
        next.out += place.out_step, next.a += place.a_step, next.b += place.b_step;
    }
}

bool is_float(const Operand& operand) {
    if (operand.view) return operand.view->dtype == DType::float32;
    return static_cast<double>(static_cast<float>(operand.number)) == operand.number;
}

// `function` of float and of double. Of float32 alone, +, -, * and / come out the same in float32: to round twice is
// to round once there.
template <class F>
void elementwise(const View& out, const Operand& a, const Operand& b, F function) {
    if (out.dtype == DType::float32 && is_float(a) && is_float(b)) {
        float numbers[2] = {static_cast<float>(a.number), static_cast<float>(b.number)};
        const float* from_a = a.view ? reinterpret_cast<const float*>(a.view->data) : &numbers[0];
        const float* from_b = b.view ? reinterpret_cast<const float*>(b.view->data) : &numbers[1];
        float* to = reinterpret_cast<float*>(out.data);
        each_row(out, a, b, [&](const Row& row) {
            for (int64_t i = 0; i < row.count; ++i) {
                to[row.out + i * row.out_step] =
                    static_cast<float>(function(from_a[row.a + i * row.a_step], from_b[row.b + i * row.b_step]));
            }
        });
        return;
    }
    const auto value = [](const Operand& operand, int64_t index) {
        return operand.view ? load(*operand.view, index) : operand.number;
    };
    each_row(out, a, b, [&](const Row& row) {
        for (int64_t i = 0; i < row.count; ++i) {
            const double made = function(value(a, row.a + i * row.a_step), value(b, row.b + i * row.b_step));
            store(out, row.out + i * row.out_step, made);
        }
    });
}

// (B, N) operands → (B,): the sum of products of two, or the unbiased standard deviation of one.
void reduce(bool deviation, const View& out, const View& a, const View& b) {
    for (int64_t row = 0; row < out.shape.at(0); ++row) {
        const int64_t count = a.shape.at(1);
        const auto of = [row](const View& view, int64_t i) {
            return load(view, row * view.strides[0] + i * view.strides[1]);
        };
        double sum = 0, mean = 0;
        if (deviation) {
            for (int64_t i = 0; i < count; ++i) mean += of(a, i);
            mean /= static_cast<double>(count);
        }
        for (int64_t i = 0; i < count; ++i) sum += (of(a, i) - mean) * (of(b, i) - mean);
        const double made = deviation ? std::sqrt(sum / static_cast<double>(count - 1)) : sum;
        store(out, row * out.strides[0], made);
    }
}

}  // namespace

void compute(const std::string& operation, const View& out, const std::vector<Operand>& operands) {
    if (operands.empty()) throw std::runtime_error("a step " + operation + " without an operand");
    const Operand &a = operands.front(), &b = operands.back();  // of one operand, both are it
    if (operation == "std" || operation == "dot")
        return reduce(operation == "std", out, a.view.value(), b.view.value());
    for (const Operand& operand : operands) {
        if (operand.view && operand.view->shape != out.shape)
            throw std::runtime_error("shapes that do not fit: " + operation);
    }
    // What NumPy calls each; a NaN goes through minimum and maximum.
    if (operation == "copy") return elementwise(out, a, b, [](auto x, auto) { return x; });
    if (operation == "add") return elementwise(out, a, b, [](auto x, auto y) { return x + y; });
    if (operation == "subtract") return elementwise(out, a, b, [](auto x, auto y) { return x - y; });
    if (operation == "multiply") return elementwise(out, a, b, [](auto x, auto y) { return x * y; });
    if (operation == "divide") return elementwise(out, a, b, [](auto x, auto y) { return x / y; });
    if (operation == "minimum") return elementwise(out, a, b, [](auto x, auto y) { return x < y || x != x ? x : y; });
    if (operation == "maximum") return elementwise(out, a, b, [](auto x, auto y) { return x > y || x != x ? x : y; });
    if (operation == "exp")
        return elementwise(out, a, b, [](auto x, auto) { return std::exp(static_cast<double>(x)); });
    if (operation == "rint") return elementwise(out, a, b, [](auto x, auto) { return std::nearbyint(x); });
    throw std::runtime_error("plan.json has the step " + operation + ", which this reader does not");
}

}  // namespace telecine
