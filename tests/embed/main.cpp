// checks CHECK ENVIRONMENT PYTHON_PATH BUNDLE [MORE ...]: one of the checks, in a process of its own.
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <string>

#include "checks.hpp"

int main(int count, char** arguments) {
    const std::map<std::string, std::function<void(const Given&)>> checks = {
        {"bad_environments", check_bad_environments},
        {"cancelling", check_cancelling},
        {"errors", check_errors},
        {"requests", make_requests},
        {"restart", check_restart},
        {"shutdown", check_shutdown},
        {"soak", check_soak},
        {"streams", check_streams},
    };
    if (count < 5 || !checks.count(arguments[1])) return 2;
    try {
        checks.at(arguments[1])({{arguments[2], {arguments[3]}}, arguments[4], {arguments + 5, arguments + count}});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::puts("passed");
}
