"""The sequence classifiers of transformers 5.24, listed here because importing it takes seconds.

A test compares them with transformers' own table.
"""

_KINDS = """
    AXK1 AXK2 Albert Arcee Bart Bert BigBird BigBirdPegasus BioGpt Bloom CTRL Camembert Canine CohereCompassText
    ConvBert Data2VecText Deberta DebertaV2 DeepseekV2 DeepseekV3 DiffLlama DistilBert Doge Electra Ernie Esm Esmc
    EuroBert Exaone4 FNet Falcon Flaubert Funnel GPT2 GPTBigCode GPTJ GPTNeo GPTNeoX Gemma2 Gemma3 Gemma3Text Gemma
    Glm4 Glm GptOss Gte Helium HunYuanDenseV1 HunYuanMoEV1 IBert Jamba JetMoe JinaEmbeddingsV3 LayoutLM LayoutLMv2
    LayoutLMv3 Lilt Llama Longformer Luke MBart MPNet MT5 MarkupLM MegatronBert MiniCPM3 MiniMax Ministral3
    Ministral Mistral4 Mistral Mixtral MobileBert ModernBertDecoder ModernBert ModernVBert Mpt Mra Mvp Nemotron
    NomicBert Nystromformer OPT Olmo2 Olmo3 Olmo OpenAIGPT PLBart Perceiver Persimmon Phi3 Phi Phimoe Qwen2 Qwen2Moe
    Qwen3 Qwen3Moe Qwen3Next Qwen3_5 Qwen3_5Text Reformer RemBert RoCBert RoFormer Roberta RobertaPreLayerNorm
    SeedOss SmolLM3 SqueezeBert StableLm Starcoder2 T5 T5Gemma2 T5Gemma Tapas UMT5 UltraVBert Ultrabert XLM
    XLMRoberta XLMRobertaXL XLNet Xmod Yoso Zamba2 Zamba
"""
CLASSIFIERS = frozenset(f"{kind}ForSequenceClassification" for kind in _KINDS.split())
"""The names of the classes."""
