// A stream stage that holds one payload and inverts it. Faults for the tests of the agents: 1 drops valid,
// 2 changes the payload while it waits, 3 raises valid only when ready is high, 4 loses a payload.
module register_slice #(parameter FAULT = 0, parameter WIDTH = 8) (
    input clk, input rst,
    input [WIDTH-1:0] i__payload, input i__valid, output i__ready,
    output [WIDTH-1:0] o__payload, output o__valid, input o__ready
);
    reg full;
    reg [WIDTH-1:0] held;
    reg [7:0] count;
    reg [1:0] waited;
    assign i__ready = !full || (o__valid && o__ready);
    assign o__valid = full && !(FAULT == 1 && waited == 1) && !(FAULT == 3 && !o__ready);
    assign o__payload = ~held ^ (FAULT == 2 && waited == 1);
    always @(posedge clk) begin
        waited <= o__valid && !o__ready ? 1 : 0;
        if (o__valid && o__ready) full <= 0;
        if (i__valid && i__ready) begin
            full <= !(FAULT == 4 && count == 20);
            held <= i__payload;
            count <= count + 1;
        end
        if (rst) begin full <= 0; count <= 0; waited <= 0; end
    end
endmodule
