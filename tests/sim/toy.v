// A stand-in for the accelerator: the same ports and host protocol, but its work is to add PC_END - PC_START to each
// byte that was loaded, and its activation memory is a plain list of bytes in stream order. Other memories take beats
// until tlast and forget them.
//
// For tests of the harness and the driver: register 0x50 turns faults on (bit 0: drop tvalid without a transfer,
// 1: never finish, 2: early tlast, 3: $fatal, 4: answer SLVERR, 5: change tdata while waiting, 6: never accept beats).
module accelerator #(parameter CONFIG_ID = 0) (
    input clk, input rst,
    input [7:0] s_axil_awaddr, input s_axil_awvalid, output s_axil_awready,
    input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
    output [1:0] s_axil_bresp, output reg s_axil_bvalid, input s_axil_bready,
    input [7:0] s_axil_araddr, input s_axil_arvalid, output s_axil_arready,
    output reg [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output reg s_axil_rvalid, input s_axil_rready,
    input [31:0] s_axis_tdata, input s_axis_tvalid, output s_axis_tready, input s_axis_tlast,
    output [31:0] m_axis_tdata, output m_axis_tvalid, input m_axis_tready, output m_axis_tlast,
    output irq
);
    reg [31:0] registers [0:63];
    reg [31:0] beats [0:4095];
    reg [31:0] scratch;  // no initial value, not reset: seen through register 0x54
    reg busy, done, loading, reading, error, tensor;
    reg [31:0] index, total, cycles, length, runs;
    reg have_address, have_data;
    reg [7:0] address;
    reg [31:0] data;
    reg glitch;

    wire [6:0] fault = registers[8'h50 >> 2][6:0];
    wire [31:0] in_size = registers[8'hA8 >> 2] * registers[8'hAC >> 2] * registers[8'hB0 >> 2];
    wire [31:0] out_size = registers[8'hE8 >> 2] * registers[8'hEC >> 2] * registers[8'hF0 >> 2];
    wire [31:0] amount = registers[8'h18 >> 2] - registers[8'h14 >> 2];

    assign s_axil_awready = !have_address, s_axil_wready = !have_data;
    assign s_axil_arready = !s_axil_rvalid;
    assign s_axil_bresp = fault[4] ? 2'd2 : 2'd0, s_axil_rresp = fault[4] ? 2'd2 : 2'd0;
    assign s_axis_tready = loading && !fault[6];
    assign m_axis_tvalid = reading && !(fault[0] && glitch);
    assign m_axis_tlast = reading && (index + 1 == total || fault[2]);
    wire [31:0] keep = index + 1 == total && out_size[1:0] != 0 ? 32'hFFFFFFFF >> (8 * (4 - out_size[1:0])) : 32'hFFFFFFFF;
    assign m_axis_tdata = (beats[index[11:0]] & keep) ^ {31'b0, fault[5] && glitch};
    assign irq = done;

    integer i;
    always @(posedge clk) begin
        if (fault[3] && !rst) $fatal(1, "fault 3");
        if (registers[8'h54 >> 2] != 0) scratch <= registers[8'h54 >> 2];
        glitch <= m_axis_tvalid && !m_axis_tready;

        if (s_axil_awvalid && s_axil_awready) begin have_address <= 1; address <= s_axil_awaddr; end
        if (s_axil_wvalid && s_axil_wready) begin have_data <= 1; data <= s_axil_wdata; end
        if (have_address && have_data && !s_axil_bvalid) begin
            s_axil_bvalid <= 1;
            registers[address >> 2] <= data;
            if (address == 8'h0C && data[0]) begin
                if (busy || loading || reading) error <= 1;
                else begin busy <= 1; done <= 0; cycles <= 0; length <= 10 * amount; end
            end
            if (address == 8'h0C && data[1]) error <= 0;
            if (address == 8'h3C) begin
                tensor <= registers[8'h30 >> 2] == 0;
                index <= 0;
                total <= (in_size + 3) >> 2;
                loading <= 1;
            end
            if (address == 8'h40) begin index <= 0; total <= (out_size + 3) >> 2; reading <= 1; end
        end
        if (s_axil_bvalid && s_axil_bready) begin s_axil_bvalid <= 0; have_address <= 0; have_data <= 0; end

        if (s_axil_arvalid && s_axil_arready) begin
            s_axil_rvalid <= 1;
            case (s_axil_araddr)
                8'h00: s_axil_rdata <= 32'h45444743;
                8'h04: s_axil_rdata <= 1;
                8'h08: s_axil_rdata <= CONFIG_ID;
                8'h10: s_axil_rdata <= {27'b0, error, reading, loading, done, busy};
                8'h1C: s_axil_rdata <= cycles;
                8'h24: s_axil_rdata <= 10;
                8'h54: s_axil_rdata <= scratch;
                default: s_axil_rdata <= registers[s_axil_araddr >> 2];
            endcase
        end
        if (s_axil_rvalid && s_axil_rready) s_axil_rvalid <= 0;

        if (s_axis_tvalid && s_axis_tready) begin
            if (tensor) beats[index[11:0]] <= s_axis_tdata;
            index <= index + 1;
            if (tensor ? index + 1 == total : s_axis_tlast) loading <= 0;
        end
        if (m_axis_tvalid && m_axis_tready) begin
            index <= index + 1;
            if (index + 1 == total) reading <= 0;
        end
        if (busy) begin
            cycles <= cycles + 1;
            if (cycles + 1 >= length && !fault[1]) begin
                busy <= 0; done <= 1;
                for (i = 0; i < 4096; i = i + 1)
                    beats[i] <= {beats[i][31:24] + amount[7:0], beats[i][23:16] + amount[7:0],
                                 beats[i][15:8] + amount[7:0], beats[i][7:0] + amount[7:0]};
            end
        end
        if (rst) begin
            busy <= 0; done <= 0; loading <= 0; reading <= 0; error <= 0; have_address <= 0; have_data <= 0;
            s_axil_bvalid <= 0; s_axil_rvalid <= 0; glitch <= 0;
            for (i = 0; i < 64; i = i + 1) registers[i] <= 0;
        end
    end
endmodule
