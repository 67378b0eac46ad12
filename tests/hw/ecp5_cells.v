// Behavioural twins of the ECP5 cells that hw/ instantiates, for simulation only: yosys has them as black boxes.
// They know only the parameters that hw/multiplier.py and hw/ecp5_memory.py use; another form stops the simulation.

module MULT18X18D #(
    parameter REG_INPUTA_CLK = "NONE", parameter REG_INPUTA_CE = "CE0", parameter REG_INPUTA_RST = "RST0",
    parameter REG_INPUTB_CLK = "NONE", parameter REG_INPUTB_CE = "CE0", parameter REG_INPUTB_RST = "RST0",
    parameter REG_PIPELINE_CLK = "NONE", parameter REG_PIPELINE_CE = "CE0", parameter REG_PIPELINE_RST = "RST0",
    parameter REG_OUTPUT_CLK = "NONE", parameter REG_OUTPUT_CE = "CE0", parameter REG_OUTPUT_RST = "RST0"
) (
    input A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, A16, A17,
    input B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13, B14, B15, B16, B17,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, CLK0, CE0, RST0,
    output P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15, P16, P17,
    output P18, P19, P20, P21, P22, P23, P24, P25, P26, P27, P28, P29, P30, P31, P32, P33, P34, P35
);
    initial if (REG_INPUTA_CLK != "CLK0" || REG_INPUTB_CLK != "CLK0" || REG_PIPELINE_CLK != "CLK0"
                || REG_OUTPUT_CLK != "CLK0") $fatal(1, "MULT18X18D: only the fully registered form is modelled");
    wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    reg signed [18:0] input_a, input_b;
    reg signed [37:0] pipeline;
    reg [35:0] result;
    always @(posedge CLK0) if (RST0) begin
        input_a <= 0; input_b <= 0; pipeline <= 0; result <= 0;
    end else if (CE0) begin
        input_a <= {SIGNEDA & a[17], a};
        input_b <= {SIGNEDB & b[17], b};
        pipeline <= input_a * input_b;
        result <= pipeline[35:0];
    end
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
            P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = result;
endmodule

// One port writes (A), the other reads (B). Words of `DATA_WIDTH` bits start at the address pin 14 - log2(words).
module DP16KD #(
    parameter DATA_WIDTH_A = 18, parameter DATA_WIDTH_B = 18,
    parameter REGMODE_A = "NOREG", parameter REGMODE_B = "NOREG",
    parameter WRITEMODE_A = "NORMAL", parameter WRITEMODE_B = "NORMAL",
    parameter GSR = "ENABLED", parameter RESETMODE = "SYNC"
) (
    input DIA0, DIA1, DIA2, DIA3, DIA4, DIA5, DIA6, DIA7, DIA8, DIA9, DIA10, DIA11, DIA12, DIA13, DIA14, DIA15,
    input DIA16, DIA17,
    input ADA0, ADA1, ADA2, ADA3, ADA4, ADA5, ADA6, ADA7, ADA8, ADA9, ADA10, ADA11, ADA12, ADA13,
    input ADB0, ADB1, ADB2, ADB3, ADB4, ADB5, ADB6, ADB7, ADB8, ADB9, ADB10, ADB11, ADB12, ADB13,
    input CLKA, CEA, WEA, OCEA, RSTA, CSA0, CSA1, CSA2,
    input CLKB, CEB, WEB, OCEB, RSTB, CSB0, CSB1, CSB2,
    output DOB0, DOB1, DOB2, DOB3, DOB4, DOB5, DOB6, DOB7, DOB8, DOB9, DOB10, DOB11, DOB12, DOB13, DOB14, DOB15,
    output DOB16, DOB17
);
    localparam SKIP = DATA_WIDTH_A == 18 ? 4 : DATA_WIDTH_A == 9 ? 3 : DATA_WIDTH_A == 4 ? 2 : DATA_WIDTH_A == 2 ? 1 : 0;
    initial if (DATA_WIDTH_A != DATA_WIDTH_B || WRITEMODE_A != "NORMAL") $fatal(1, "DP16KD: form is not modelled");
    wire [17:0] data = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4,
                        DIA3, DIA2, DIA1, DIA0};
    wire [13:0] write = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] read = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    reg [17:0] words [0:(1 << (14 - SKIP)) - 1];
    reg [17:0] memory_output, output_register;
    wire selected_a = ~(CSA0 | CSA1 | CSA2), selected_b = ~(CSB0 | CSB1 | CSB2);
    always @(posedge CLKA) if (CEA & WEA & selected_a) begin
        if (DATA_WIDTH_A != 18 || ADA0) words[write >> SKIP][8:0] <= data[8:0];
        if (DATA_WIDTH_A != 18 || ADA1) words[write >> SKIP][17:9] <= data[17:9];
    end
    always @(posedge CLKB) begin
        if (CEB & selected_b & ~WEB) memory_output <= words[read >> SKIP];
        if (OCEB) output_register <= memory_output;
    end
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2,
            DOB1, DOB0} = REGMODE_B == "OUTREG" ? output_register : memory_output;
endmodule

// 512 words of 36 bits; DO[17:0] is the upper half of a word and DO[35:18] the lower, as in the vendor's own netlists.
module PDPW16KD #(
    parameter DATA_WIDTH_W = 36, parameter DATA_WIDTH_R = 36, parameter REGMODE = "NOREG",
    parameter GSR = "ENABLED", parameter RESETMODE = "SYNC"
) (
    input DI0, DI1, DI2, DI3, DI4, DI5, DI6, DI7, DI8, DI9, DI10, DI11, DI12, DI13, DI14, DI15, DI16, DI17,
    input DI18, DI19, DI20, DI21, DI22, DI23, DI24, DI25, DI26, DI27, DI28, DI29, DI30, DI31, DI32, DI33, DI34, DI35,
    input ADW0, ADW1, ADW2, ADW3, ADW4, ADW5, ADW6, ADW7, ADW8, BE0, BE1, BE2, BE3,
    input ADR0, ADR1, ADR2, ADR3, ADR4, ADR5, ADR6, ADR7, ADR8, ADR9, ADR10, ADR11, ADR12, ADR13,
    input CLKW, CEW, CSW0, CSW1, CSW2, CLKR, CER, OCER, CSR0, CSR1, CSR2, RST,
    output DO0, DO1, DO2, DO3, DO4, DO5, DO6, DO7, DO8, DO9, DO10, DO11, DO12, DO13, DO14, DO15, DO16, DO17,
    output DO18, DO19, DO20, DO21, DO22, DO23, DO24, DO25, DO26, DO27, DO28, DO29, DO30, DO31, DO32, DO33, DO34, DO35
);
    initial if (DATA_WIDTH_W != 36 || DATA_WIDTH_R != 36) $fatal(1, "PDPW16KD: form is not modelled");
    wire [35:0] data = {DI35, DI34, DI33, DI32, DI31, DI30, DI29, DI28, DI27, DI26, DI25, DI24, DI23, DI22, DI21, DI20,
                        DI19, DI18, DI17, DI16, DI15, DI14, DI13, DI12, DI11, DI10, DI9, DI8, DI7, DI6, DI5, DI4, DI3,
                        DI2, DI1, DI0};
    wire [8:0] write = {ADW8, ADW7, ADW6, ADW5, ADW4, ADW3, ADW2, ADW1, ADW0};
    wire [8:0] read = {ADR13, ADR12, ADR11, ADR10, ADR9, ADR8, ADR7, ADR6, ADR5};
    reg [35:0] words [0:511];
    reg [35:0] memory_output, output_register;
    always @(posedge CLKW) if (CEW & ~(CSW0 | CSW1 | CSW2)) begin
        if (BE0) words[write][8:0] <= data[8:0];
        if (BE1) words[write][17:9] <= data[17:9];
        if (BE2) words[write][26:18] <= data[26:18];
        if (BE3) words[write][35:27] <= data[35:27];
    end
    always @(posedge CLKR) begin
        if (CER & ~(CSR0 | CSR1 | CSR2)) memory_output <= words[read];
        if (OCER) output_register <= memory_output;
    end
    wire [35:0] word = REGMODE == "OUTREG" ? output_register : memory_output;
    assign {DO17, DO16, DO15, DO14, DO13, DO12, DO11, DO10, DO9, DO8, DO7, DO6, DO5, DO4, DO3, DO2, DO1, DO0,
            DO35, DO34, DO33, DO32, DO31, DO30, DO29, DO28, DO27, DO26, DO25, DO24, DO23, DO22, DO21, DO20, DO19,
            DO18} = word;
endmodule
