// Drives the generated `accelerator` for sim/harness.py: commands on standard input, answers on standard output.
//
// A command is {u8 op, u32 a, u32 b} little-endian, and for SEND and TRACE the data. Only READ, RECEIVE, WAIT,
// CYCLES and SYNC are answered: {u8 status, u32 size, bytes}. Status 1 carries a message; the first error is kept and
// answers everything until RESET. Inputs change after the rising edge; handshakes are sampled before the next one.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include "Vaccelerator.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

namespace {

enum Op : uint8_t {
    RESET = 0, WRITE = 1, READ = 2, SEND = 3, RECEIVE = 4, WAIT = 5, STALL = 6, CYCLES = 7, TRACE = 8, SYNC = 9,
    IDLE = 10, LIMIT = 11, QUIT = 12
};

constexpr int RESET_CYCLES = 8;

struct Header {
    uint8_t op;
    uint32_t a, b;
    uint64_t wide() const { return a | static_cast<uint64_t>(b) << 32; }
};

// Decides where bus agents pause; probability 0 costs nothing.
class Stalls {
public:
    void set(uint32_t seed, uint32_t probability) {
        state_ = (static_cast<uint64_t>(seed) << 1 | 1) * 0x9E3779B97F4A7C15ULL;
        probability_ = probability;
    }
    bool active() const { return probability_ != 0; }
    bool now() { return probability_ && (random() & 0xFFFF) < probability_; }
    uint32_t random() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<uint32_t>(state_ >> 16);
    }

private:
    uint64_t state_ = 1;
    uint32_t probability_ = 0;  // of 65536
};

class Bench {
public:
    explicit Bench(VerilatedContext* context) : context_(context), top_(context) {}
    ~Bench() {
#if VM_TRACE
        if (trace_) trace_->close();
#endif
        top_.final();
    }

    void reset();
    void write(uint32_t address, uint32_t value);
    uint32_t read(uint32_t address);
    void send(const std::vector<uint32_t>& beats);
    std::vector<uint32_t> receive(uint32_t count);
    bool wait(uint64_t max_cycles, uint64_t* waited);
    void idle(uint64_t cycles) {
        while (cycles--) settle(), edge();
    }
    void trace(const std::string& file);

    Stalls stalls;
    uint64_t cycles = 0;
    uint64_t limit = 100000;  // cycles that a handshake may take
    std::string error;

private:
    void settle();
    void edge();
    void check_output_stream();
    bool late(uint64_t since, const char* format, ...);
    void fail(const std::string& text) {
        if (error.empty()) error = "cycle " + std::to_string(cycles) + ": " + text;
    }
    uint32_t junk() { return stalls.active() ? stalls.random() : 0; }
    void dump() {
#if VM_TRACE
        if (trace_) trace_->dump(context_->time());
        context_->timeInc(1);
#endif
    }

    VerilatedContext* context_;
    Vaccelerator top_;
    bool held_ = false;  // the output stream offered a beat that was not taken
    uint32_t held_data_ = 0;
    bool held_last_ = false;
#if VM_TRACE
    std::unique_ptr<VerilatedVcdC> trace_;
#endif
};

inline void Bench::settle() {
    top_.clk = 0;
    top_.eval();
    dump();
    check_output_stream();
}

inline void Bench::edge() {
    top_.clk = 1;
    top_.eval();
    dump();
    ++cycles;
}

// A beat that is offered stays, unchanged, until it is taken.
void Bench::check_output_stream() {
    if (held_ && !top_.m_axis_tvalid) fail("output stream: tvalid fell before the beat was taken");
    if (held_ && top_.m_axis_tvalid && (top_.m_axis_tdata != held_data_ || top_.m_axis_tlast != held_last_))
        fail("output stream: the beat changed before it was taken");
    held_ = top_.m_axis_tvalid && !top_.m_axis_tready && !top_.rst;
    held_data_ = top_.m_axis_tdata;
    held_last_ = top_.m_axis_tlast;
}

bool Bench::late(uint64_t since, const char* format, ...) {
    if (!error.empty()) return true;
    if (cycles - since < limit) return false;
    char text[200];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail(std::string(text) + " within " + std::to_string(limit) + " cycles");
    return true;
}

void Bench::reset() {
    top_.rst = 1;
    top_.s_axil_awvalid = top_.s_axil_wvalid = top_.s_axil_bready = 0;
    top_.s_axil_arvalid = top_.s_axil_rready = 0;
    top_.s_axis_tvalid = top_.s_axis_tlast = top_.m_axis_tready = 0;
    held_ = false;
    idle(RESET_CYCLES);
    top_.rst = 0;
    idle(1);
    cycles = 0;
    error.clear();
}

void Bench::write(uint32_t address, uint32_t value) {
    const uint64_t start = cycles;
    bool address_left = true, data_left = true, done = false;
    while (!done && !late(start, "register write to 0x%02x: no answer", address)) {
        if (address_left && !top_.s_axil_awvalid) {
            top_.s_axil_awvalid = !stalls.now();
            top_.s_axil_awaddr = top_.s_axil_awvalid ? address : junk();
        }
        if (data_left && !top_.s_axil_wvalid) {
            top_.s_axil_wvalid = !stalls.now();
            top_.s_axil_wdata = top_.s_axil_wvalid ? value : junk();
            top_.s_axil_wstrb = 0xF;
        }
        top_.s_axil_bready = !stalls.now();
        settle();
        const bool address_taken = top_.s_axil_awvalid && top_.s_axil_awready;
        const bool data_taken = top_.s_axil_wvalid && top_.s_axil_wready;
        done = top_.s_axil_bvalid && top_.s_axil_bready;
        if (top_.s_axil_bvalid && (address_left || data_left))
            fail("register write: bvalid before address and data were taken");
        if (done && top_.s_axil_bresp) fail("register write: bresp is not OKAY");
        edge();
        if (address_taken) address_left = false, top_.s_axil_awvalid = 0;
        if (data_taken) data_left = false, top_.s_axil_wvalid = 0;
    }
    top_.s_axil_bready = 0;
}

uint32_t Bench::read(uint32_t address) {
    const uint64_t start = cycles;
    bool address_left = true, done = false;
    uint32_t value = 0;
    while (!done && !late(start, "register read of 0x%02x: no answer", address)) {
        if (address_left && !top_.s_axil_arvalid) {
            top_.s_axil_arvalid = !stalls.now();
            top_.s_axil_araddr = top_.s_axil_arvalid ? address : junk();
        }
        top_.s_axil_rready = !stalls.now();
        settle();
        const bool address_taken = top_.s_axil_arvalid && top_.s_axil_arready;
        done = top_.s_axil_rvalid && top_.s_axil_rready;
        if (top_.s_axil_rvalid && address_left) fail("register read: rvalid before the address was taken");
        if (done && top_.s_axil_rresp) fail("register read: rresp is not OKAY");
        value = top_.s_axil_rdata;
        edge();
        if (address_taken) address_left = false, top_.s_axil_arvalid = 0;
    }
    top_.s_axil_rready = 0;
    return value;
}

void Bench::send(const std::vector<uint32_t>& beats) {
    uint64_t progress = cycles;
    for (size_t i = 0; i < beats.size();) {
        if (late(progress, "input stream: beat %zu of %zu not accepted", i, beats.size())) break;
        if (!top_.s_axis_tvalid) {
            top_.s_axis_tvalid = !stalls.now();
            top_.s_axis_tdata = top_.s_axis_tvalid ? beats[i] : junk();
            top_.s_axis_tlast = top_.s_axis_tvalid && i + 1 == beats.size();
        }
        settle();
        const bool taken = top_.s_axis_tvalid && top_.s_axis_tready;
        edge();
        if (taken) top_.s_axis_tvalid = 0, progress = cycles, ++i;
    }
    top_.s_axis_tvalid = top_.s_axis_tlast = 0;
}

std::vector<uint32_t> Bench::receive(uint32_t count) {
    std::vector<uint32_t> beats;
    uint64_t progress = cycles;
    while (beats.size() < count) {
        if (late(progress, "output stream: beat %zu of %u not offered", beats.size(), count)) break;
        top_.m_axis_tready = !stalls.now();
        settle();
        if (top_.m_axis_tvalid && top_.m_axis_tready) {
            const bool last = beats.size() + 1 == count;
            if (static_cast<bool>(top_.m_axis_tlast) != last)
                fail("output stream: tlast is " + std::to_string(top_.m_axis_tlast) + " at beat " +
                     std::to_string(beats.size()) + " of " + std::to_string(count));
            beats.push_back(top_.m_axis_tdata);
            progress = cycles;
        }
        edge();
    }
    top_.m_axis_tready = 0;
    return beats;
}

// The loop in which nearly all time is spent: inputs are still, only irq is looked at.
bool Bench::wait(uint64_t max_cycles, uint64_t* waited) {
    uint64_t n = 0;
    while (!top_.irq && n < max_cycles) {
        top_.clk = 0;
        top_.eval();
        dump();
        top_.clk = 1;
        top_.eval();
        dump();
        ++n;
    }
    cycles += n;
    *waited = n;
    return top_.irq;
}

void Bench::trace(const std::string& file) {
#if VM_TRACE
    trace_ = std::make_unique<VerilatedVcdC>();
    top_.trace(trace_.get(), 99);
    trace_->open(file.c_str());
    if (!trace_->isOpen()) fail("cannot write the trace " + file);
#else
    fail("built without trace, cannot write " + file);
#endif
}

bool take(void* data, size_t size) { return std::fread(data, 1, size, stdin) == size; }

std::FILE* answers = nullptr;

// Keeps standard output for answers: what the model prints ($display, $fatal) goes to standard error instead.
void claim_standard_output() {
    answers = fdopen(dup(STDOUT_FILENO), "wb");
    dup2(STDERR_FILENO, STDOUT_FILENO);
}

void answer(const Bench& bench, const void* data, uint32_t size) {
    const uint8_t status = !bench.error.empty();
    if (status) data = bench.error.data(), size = bench.error.size();
    std::fwrite(&status, 1, 1, answers);
    std::fwrite(&size, 1, sizeof size, answers);
    std::fwrite(data, 1, size, answers);
    std::fflush(answers);
}

bool take_header(Header* header) {
    uint8_t raw[9];
    if (!take(raw, sizeof raw)) return false;
    header->op = raw[0];
    std::memcpy(&header->a, raw + 1, 4);
    std::memcpy(&header->b, raw + 5, 4);
    return true;
}

// False ends the program.
bool execute(Bench& bench, const Header& command) {
    switch (command.op) {
        case RESET: bench.reset(); return true;
        case WRITE:
            if (bench.error.empty()) bench.write(command.a, command.b);
            return true;
        case READ: {
            const uint32_t value = bench.error.empty() ? bench.read(command.a) : 0;
            answer(bench, &value, sizeof value);
            return true;
        }
        case SEND: {
            std::vector<uint32_t> beats(command.a);
            if (!take(beats.data(), 4 * beats.size())) return false;
            if (bench.error.empty()) bench.send(beats);
            return true;
        }
        case RECEIVE: {
            std::vector<uint32_t> beats;
            if (bench.error.empty()) beats = bench.receive(command.a);
            answer(bench, beats.data(), 4 * beats.size());
            return true;
        }
        case WAIT: {
            uint64_t result[2] = {0, 0};  // finished, cycles
            if (bench.error.empty()) result[0] = bench.wait(command.wide(), &result[1]);
            answer(bench, result, sizeof result);
            return true;
        }
        case STALL: bench.stalls.set(command.a, command.b); return true;
        case CYCLES: answer(bench, &bench.cycles, sizeof bench.cycles); return true;
        case TRACE: {
            std::string file(command.a, '\0');
            if (!take(&file[0], file.size())) return false;
            bench.trace(file);
            return true;
        }
        case SYNC: answer(bench, nullptr, 0); return true;
        case IDLE: bench.idle(command.wide()); return true;
        case LIMIT: bench.limit = command.wide(); return true;
        default: return false;
    }
}

}  // namespace

int main(int argc, char** argv) {
    claim_standard_output();
    VerilatedContext context;
    context.commandArgs(argc, argv);  // +verilator+rand+reset+2 and +verilator+seed+N of an x_initial="unique" build
#if VM_TRACE
    context.traceEverOn(true);
#endif
    auto bench = std::make_unique<Bench>(&context);
    bench->reset();
    Header command;
    while (take_header(&command) && execute(*bench, command)) {
    }
    return 0;
}
