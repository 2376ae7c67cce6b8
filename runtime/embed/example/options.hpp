// The command line of the example.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

struct Options {
    std::string environment, bundle, prompt, out;
    std::optional<std::string> python_path, preset;
    std::optional<int> width, height, frames, steps, operator_threads;
    std::optional<double> time_limit;
    int seed = 0, requests = 1, threads = 1;
};

inline const char* const kUsage =
    "telecine_service --environment DIR --bundle DIR --prompt TEXT --out DIR\n"
    "    [--preset NAME] [--width N] [--height N] [--frames N] [--steps N] [--seed N]\n"
    "    [--requests N] [--threads N] [--operator-threads N] [--time-limit SECONDS] [--python-path DIR]\n";

// Throws std::invalid_argument, with what is wrong.
inline Options parse(int count, char** arguments) {
    Options options;
    const std::map<std::string, std::function<void(const std::string&)>> known = {
        {"--environment", [&](const std::string& text) { options.environment = text; }},
        {"--bundle", [&](const std::string& text) { options.bundle = text; }},
        {"--prompt", [&](const std::string& text) { options.prompt = text; }},
        {"--out", [&](const std::string& text) { options.out = text; }},
        {"--python-path", [&](const std::string& text) { options.python_path = text; }},
        {"--preset", [&](const std::string& text) { options.preset = text; }},
        {"--width", [&](const std::string& text) { options.width = std::stoi(text); }},
        {"--height", [&](const std::string& text) { options.height = std::stoi(text); }},
        {"--frames", [&](const std::string& text) { options.frames = std::stoi(text); }},
        {"--steps", [&](const std::string& text) { options.steps = std::stoi(text); }},
        {"--seed", [&](const std::string& text) { options.seed = std::stoi(text); }},
        {"--requests", [&](const std::string& text) { options.requests = std::stoi(text); }},
        {"--threads", [&](const std::string& text) { options.threads = std::stoi(text); }},
        {"--operator-threads", [&](const std::string& text) { options.operator_threads = std::stoi(text); }},
        {"--time-limit", [&](const std::string& text) { options.time_limit = std::stod(text); }},
    };
    for (int i = 1; i < count; i += 2) {
        const auto option = known.find(arguments[i]);
        if (option == known.end()) throw std::invalid_argument(std::string("unknown option ") + arguments[i]);
        if (i + 1 == count) throw std::invalid_argument(std::string(arguments[i]) + " needs a value");
        try {
            option->second(arguments[i + 1]);
        } catch (const std::logic_error&) {  // of stoi and stod
            throw std::invalid_argument(std::string(arguments[i]) + " needs a number, not " + arguments[i + 1]);
        }
    }
    if (options.environment.empty() || options.bundle.empty() || options.prompt.empty() || options.out.empty())
        throw std::invalid_argument("--environment, --bundle, --prompt and --out are needed");
    if (options.requests < 1 || options.threads < 1)
        throw std::invalid_argument("--requests and --threads are 1 or more");
    return options;
}
