// A library that is a backend: it counts by itself, and writes what it has counted to the file that COUNTING_BACKEND_FILE
// names whenever it is flushed. A real one would talk to a monitoring system of its own here.
//
//     METRICBUS_LIBNV=build/libcounting.so my-rust-program
#include "metricbus.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <mutex>
#include <string>

namespace {

using metricbus::plugin::config;
using metricbus::plugin::declared;

// What is known of one series. Shared by the series, which is told, and the backend, which reports.
struct account {
    explicit account(const declared &d) : name(d.name), kind(d.kind), bounds(d.bounds), buckets(d.bounds.size() + 1) {
        for (const auto &[label, value] : d.labels) {
            name += (name.back() == '"' ? "," : "{");
            name.append(label).append("=\"").append(value).append("\"");
        }
        if (!d.labels.empty()) {
            name += "}";
        }
    }

    void write(std::FILE *file) const {
        std::lock_guard<std::mutex> lock(mutex);
        switch (kind) {
        case MB_COUNTER:
            std::fprintf(file, "%s %llu\n", name.c_str(), static_cast<unsigned long long>(whole));
            break;
        case MB_HISTOGRAM:
            std::fprintf(file, "%s sum=%g", name.c_str(), real);
            for (auto n : buckets) {
                std::fprintf(file, " %llu", static_cast<unsigned long long>(n));
            }
            std::fprintf(file, "\n");
            break;
        default:
            std::fprintf(file, "%s %g\n", name.c_str(), real);
        }
    }

    mutable std::mutex mutex; // held for an addition or two
    std::string name;
    std::int32_t kind;
    std::vector<double> bounds;
    std::uint64_t whole = 0;
    double real = 0; // of a histogram, the sum
    std::vector<std::uint64_t> buckets;
    bool removed = false;
};

class counting_series : public metricbus::plugin::series {
  public:
    explicit counting_series(std::shared_ptr<account> account) : account_(std::move(account)) {}

    void inc(std::uint64_t by) override {
        std::lock_guard<std::mutex> lock(account_->mutex);
        account_->whole += by;
    }
    void add(double by) override {
        std::lock_guard<std::mutex> lock(account_->mutex);
        account_->real += by;
    }
    void set(double value) override {
        std::lock_guard<std::mutex> lock(account_->mutex);
        account_->real = value;
    }
    void observe(double value) override {
        std::lock_guard<std::mutex> lock(account_->mutex);
        const auto &bounds = account_->bounds;
        // NaN is less than nothing, and so goes to the last one.
        auto bucket = std::find_if(bounds.begin(), bounds.end(), [&](double bound) { return value <= bound; });
        account_->buckets[static_cast<std::size_t>(bucket - bounds.begin())] += 1;
        account_->real += value;
    }
    void get_value(mb_value &value) const override {
        std::lock_guard<std::mutex> lock(account_->mutex);
        value.whole = account_->whole;
        value.real = account_->real;
        value.sum = account_->real;
        std::copy_n(account_->buckets.begin(), std::min(value.buckets_len, account_->buckets.size()), value.buckets);
    }
    void remove() override {
        std::lock_guard<std::mutex> lock(account_->mutex);
        account_->removed = true;
    }

  private:
    std::shared_ptr<account> account_;
};

class counting : public metricbus::plugin::backend {
  public:
    explicit counting(const config &config) : service_(config.service) {
        const char *path = std::getenv("COUNTING_BACKEND_FILE");
        path_ = path == nullptr ? "" : path;
    }

    std::unique_ptr<metricbus::plugin::series> declare(const declared &series) override {
        auto made = std::make_shared<account>(series);
        std::lock_guard<std::mutex> lock(mutex_);
        accounts_.push_back(made);
        return std::make_unique<counting_series>(made);
    }

    void flush(std::chrono::nanoseconds) override {
        std::lock_guard<std::mutex> lock(mutex_);
        accounts_.remove_if([](const auto &one) {
            std::lock_guard<std::mutex> lock(one->mutex);
            return one->removed;
        });
        if (path_.empty()) {
            return;
        }
        std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path_.c_str(), "w"), std::fclose);
        if (file == nullptr) {
            throw std::runtime_error("can't write to " + path_);
        }
        std::fprintf(file.get(), "service %s\n", service_.c_str());
        for (const auto &one : accounts_) {
            one->write(file.get());
        }
    }

  private:
    std::mutex mutex_;
    std::string service_;
    std::string path_;
    std::list<std::shared_ptr<account>> accounts_;
};

} // namespace

METRICBUS_BACKEND(counting, "counting")
